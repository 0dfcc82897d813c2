/* One WebSocket for the page.

   <div data-live="job:<id>" data-after="17"> subscribes to the topic "job:<id>" from sequence
   number 17 on. Every message of the topic becomes a DOM event "flowml:<type>" that bubbles from
   each such element; its detail is the message: {topic, seq, type, at, data}. "flowml:any" stands
   for a message of any type. What comes in bursts is thinned: the first at once, then the newest at
   most every GAP ms, so a listener that refetches a fragment always ends with the newest state and
   never floods the server (htmx's own throttle would lose the last one):

     <div hx-get="..." hx-trigger="flowml:leaderboard from:closest [data-live], every 20s">

   Elements that come or go later (htmx) are noticed. After a lost connection the socket comes back
   by itself and asks for what it missed. When the server turns it away it asks once more: a new
   password, set in another tab, ends the session and gives this browser another one. Turned away
   twice, the person is signed out, and elements with data-signed-out are shown. */
(() => {
  "use strict";
  const GAP = 400;
  const FIRST_WAIT = 500;
  const LONGEST_WAIT = 15000;
  const NOTE_AFTER = 1500;
  const SETTLED_AFTER = 1000;
  const LET_IN_AFTER = 15000; // longer than the server waits before it looks again

  const seen = new Map(); // topic -> highest sequence number that arrived
  const refused = new Set(); // topics that the server won't tell us about
  const thinned = new Map(); // "topic event" -> {latest}, while its gap lasts
  let subscribed = new Set(); // topics that the open socket knows of
  let socket = null;
  let wait = FIRST_WAIT;
  let retry = 0;
  let noteTimer = 0;
  let turnedAway = 0; // times in a row
  let leaving = false;

  function elementsOf(topic) {
    return document.querySelectorAll(`[data-live="${CSS.escape(topic)}"]`);
  }

  function wanted() {
    const topics = new Set();
    for (const element of document.querySelectorAll("[data-live]")) {
      const topic = element.dataset.live;
      if (!topic || refused.has(topic)) continue;
      topics.add(topic);
      const after = Number(element.dataset.after || 0);
      if (after > (seen.get(topic) ?? -1)) seen.set(topic, after);
    }
    return topics;
  }

  function show(note, shown) {
    for (const element of document.querySelectorAll(`[${note}]`)) element.hidden = !shown;
  }

  // A blink is not worth a word: only a connection that stays away is told.
  function lost() {
    noteTimer ||= setTimeout(() => show("data-connection", true), NOTE_AFTER);
  }

  function settled() {
    clearTimeout(noteTimer);
    noteTimer = 0;
    wait = FIRST_WAIT;
    show("data-connection", false);
    show("data-signed-out", false);
  }

  function signedOut() {
    settled();
    show("data-signed-out", true);
  }

  function send(message) {
    if (socket && socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
  }

  function sync() {
    const topics = wanted();
    if (!topics.size && !socket) return;
    if (!socket) {
      if (!retry && turnedAway < 2) connect();
      return;
    }
    if (socket.readyState !== WebSocket.OPEN) return; // the open handler subscribes
    for (const topic of topics) {
      if (subscribed.has(topic)) continue;
      subscribed.add(topic);
      send({ subscribe: topic, after: seen.get(topic) ?? 0 });
    }
    for (const topic of subscribed) {
      if (topics.has(topic)) continue;
      subscribed.delete(topic);
      seen.delete(topic); // whoever comes back brings a data-after of its own
      send({ unsubscribe: topic });
    }
  }

  function connect() {
    clearTimeout(retry);
    retry = 0;
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const opened = new WebSocket(`${scheme}//${location.host}/ws`);
    socket = opened;
    subscribed = new Set();
    opened.addEventListener("open", () => {
      sync();
      // A server that takes connections only to drop them is not back yet.
      setTimeout(() => socket === opened && settled(), SETTLED_AFTER);
      setTimeout(() => {
        if (socket === opened) turnedAway = 0;
      }, LET_IN_AFTER);
    });
    opened.addEventListener("message", (event) => {
      let message;
      try {
        message = JSON.parse(event.data);
      } catch {
        return;
      }
      if (socket === opened && !message.error) {
        turnedAway = 0;
        settled();
      }
      receive(message);
    });
    opened.addEventListener("close", (event) => {
      if (socket !== opened) return;
      socket = null;
      subscribed = new Set();
      if (leaving || !wanted().size) return;
      if (event.code === 4401) {
        turnedAway += 1;
        if (turnedAway > 1) {
          signedOut();
          return;
        }
      }
      lost();
      retry = setTimeout(connect, wait * (0.75 + Math.random() / 2));
      wait = Math.min(wait * 1.8, LONGEST_WAIT);
    });
  }

  function receive(message) {
    const topic = message.topic;
    if (message.error) {
      if (topic) refused.add(topic);
      return;
    }
    if (!topic || typeof message.type !== "string") return;
    if (typeof message.seq === "number") {
      // A replay may repeat what a push already brought.
      if (message.seq <= (seen.get(topic) ?? -1)) return;
      seen.set(topic, message.seq);
    }
    thin(message, `flowml:${message.type}`);
    thin(message, "flowml:any");
  }

  function thin(message, name) {
    const key = `${message.topic} ${name}`;
    const busy = thinned.get(key);
    if (busy) {
      busy.latest = message;
      return;
    }
    const entry = { latest: null };
    const later = () => {
      if (!entry.latest) {
        thinned.delete(key);
        return;
      }
      dispatch(entry.latest, name);
      entry.latest = null;
      setTimeout(later, GAP);
    };
    thinned.set(key, entry);
    dispatch(message, name);
    setTimeout(later, GAP);
  }

  function dispatch(message, name) {
    for (const element of elementsOf(message.topic)) {
      element.dataset.after = String(seen.get(message.topic));
      element.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: message }));
    }
  }

  function hasten() {
    if (!socket && (retry || turnedAway > 1)) {
      wait = FIRST_WAIT;
      turnedAway = Math.min(turnedAway, 1); // perhaps signed in again, in another tab
      connect();
    }
  }

  let queued = false;
  const observer = new MutationObserver(() => {
    if (queued) return;
    queued = true;
    queueMicrotask(() => {
      queued = false;
      sync();
    });
  });

  function start() {
    observer.observe(document.body, {
      subtree: true,
      childList: true,
      attributes: true,
      attributeFilter: ["data-live"],
    });
    sync();
  }

  window.addEventListener("online", hasten);
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) hasten();
  });
  window.addEventListener("pagehide", () => {
    leaving = true;
    if (socket) socket.close();
  });
  window.addEventListener("pageshow", (event) => {
    if (!event.persisted) return;
    leaving = false; // back from the browser's page cache
    socket = null;
    sync();
  });

  // What live.js knows, for tests and for the curious in the console.
  window.flowmlLive = {
    state: () => ({
      open: Boolean(socket && socket.readyState === WebSocket.OPEN),
      topics: [...subscribed],
      seen: Object.fromEntries(seen),
    }),
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
