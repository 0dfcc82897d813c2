"""What an attempt's end means, from what was seen of it. Pure."""

import signal
from dataclasses import dataclass, field
from typing import Any, Literal

Reason = Literal["", "cancel", "returned", "stop", "time", "memory"]

# What native code prints when an allocation fails, before it aborts.
MEMORY_WORDS = (
    "MemoryError",
    "bad_alloc",
    "memory allocation of",
    "Cannot allocate memory",
    "Unable to allocate",
    "out of memory",
)
GPU_MEMORY_WORDS = (
    "CUDA out of memory",
    "CUDA_ERROR_OUT_OF_MEMORY",
    "cudaErrorMemoryAllocation",
    "OOM when allocating tensor",
)
GPU_MEMORY = (
    "It needed more memory than its GPU has. Use a smaller batch or a smaller model, or a GPU with "
    "more memory."
)
DISK_FULL = "The node's disk is full. Free some space there and try again."
SIGNAL_WORDS = {
    signal.SIGSEGV: "it touched memory that is not its own (segmentation fault)",
    signal.SIGBUS: "a bus error",
    signal.SIGILL: "an instruction that this processor does not know",
    signal.SIGFPE: "an arithmetic error",
    signal.SIGABRT: "it gave up by itself (abort)",
}


@dataclass(frozen=True)
class Seen:
    """What was seen of a child that has ended.

    ``reason`` is why the supervisor cut it short ("" if it did not), ``signal`` what ended the
    process or 0, ``said`` its last message ({"type": "result" | "error", ...}) or None,
    ``candidates`` how many it handed over in all attempts, ``tail`` the last of its output.
    """

    reason: Reason = ""
    signal: int = 0
    said: dict[str, Any] | None = None
    candidates: int = 0
    keeps: bool = False
    engine: str = ""
    ram_mib: int = 0
    time_s: float = 0.0
    tail: str = ""


@dataclass(frozen=True)
class End:
    """An attempt's outcome as the protocol has it, without its usage."""

    outcome: Literal["succeeded", "failed", "cancelled", "returned"]
    data: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    error: str = ""
    code: str = ""
    fault: Literal["", "work", "platform"] = ""


def judge(seen: Seen) -> End:
    """Decide the outcome. What was finished counts; a failure comes with a sentence to act on."""
    who = "The engine" if seen.engine else "The work"
    said = seen.said or {}
    if seen.reason == "cancel":
        return End("cancelled")
    if said.get("type") == "result":
        data = dict(said.get("data") or {})
        if seen.reason in ("stop", "time"):
            data["stopped"] = "asked" if seen.reason == "stop" else "time limit"
        return End("succeeded", data, dict(said.get("files") or {}))
    if seen.reason == "returned":
        return End("returned")
    kept = {"candidates": seen.candidates}
    if seen.reason in ("stop", "time") and seen.keeps and seen.candidates:
        why = "asked" if seen.reason == "stop" else "time limit"
        return End("succeeded", {"stopped": why, **kept})
    if said.get("type") == "error":
        fault: Literal["work", "platform"] = (
            "platform" if said.get("fault") == "platform" else "work"
        )
        sentence = str(said.get("error") or f"{who} failed and did not say why.")
        data = {**dict(said.get("data") or {}), **kept}
        return End(
            "failed",
            data,
            error=sentence,
            code=str(said.get("code") or ""),
            fault=fault,
        )
    if seen.reason == "time":
        result = "a first result" if seen.keeps else "it was done"
        sentence = (
            f"{who} passed its time limit of {seconds(seen.time_s)} before {result}. "
            "Give it more time, or less data."
        )
        return End("failed", kept, error=sentence, code="time_limit", fault="work")
    if seen.reason == "stop":
        sentence = f"{who} was stopped before a first result."
        return End("failed", kept, error=sentence, code="stopped", fault="work")
    if seen.signal and any(word in seen.tail for word in GPU_MEMORY_WORDS):
        return End("failed", kept, error=GPU_MEMORY, code="gpu_memory", fault="work")
    if seen.reason == "memory" or ran_out_of_memory(seen):
        return End(
            "failed",
            kept,
            error=memory_words(seen.ram_mib),
            code="memory",
            fault="work",
        )
    if seen.signal == signal.SIGKILL:
        sentence = (
            f"{who} was killed by the operating system, most likely because the machine ran out "
            "of memory. Use fewer rows or columns, or a machine with more memory."
        )
        return End("failed", kept, error=sentence, code="killed", fault="work")
    if seen.signal:
        named = SIGNAL_WORDS.get(signal.Signals(seen.signal)) if _known(seen.signal) else None
        sentence = f"{who} crashed: {named or f'signal {seen.signal}'}. Its log may say more."
        return End("failed", kept, error=sentence, code="crash", fault="work")
    sentence = f"{who} ended without a result. Its log may say why."
    return End("failed", kept, error=sentence, code="crash", fault="work")


def ran_out_of_memory(seen: Seen) -> bool:
    """Whether a crash was a failed allocation, as far as the process could say so."""
    return bool(seen.signal) and any(word in seen.tail for word in MEMORY_WORDS)


def should_start_again(seen: Seen, starts: int, *, orphaned: bool) -> bool:
    """Whether the same attempt goes on in a new child: it was killed by something from outside.

    A warm parent that died takes its children along, and a stray SIGKILL says nothing about the
    work, so both get another child, which is told what is finished. A machine that is short of
    memory kills again; then it is the work's problem.
    """
    if seen.said or seen.reason or starts >= 3:
        return False
    return orphaned or (seen.signal == signal.SIGKILL and starts < 2)


def wants_smaller_batch(seen: Seen) -> bool:
    """Whether it ran out of GPU memory, and says that it can do with less."""
    said = seen.said or {}
    fits = said.get("type") == "error" and said.get("code") == "gpu_memory"
    return fits and not seen.reason and bool((said.get("data") or {}).get("smaller_batch"))


def is_gpu_memory(error: BaseException) -> bool:
    """Whether an exception means that a GPU's memory is full (PyTorch, TensorFlow, CuPy, CUDA)."""
    if type(error).__name__ in ("OutOfMemoryError", "ResourceExhaustedError"):
        return True
    return any(word in str(error) for word in GPU_MEMORY_WORDS)


def memory_words(ram_mib: int) -> str:
    """The sentence for a task that needed more memory than it may have."""
    if not ram_mib:
        return "It ran out of memory. Use fewer rows or columns, or a machine with more memory."
    return (
        f"It needed more than {ram_mib / 1024:.1f} GiB of memory, which is its limit. "
        "Use fewer rows or columns, or raise the limit."
    )


def seconds(value: float) -> str:
    """A duration for people: "45 s", "2.5 min", "3 h"."""
    if value < 120:
        return f"{value:.3g} s"
    return f"{value / 60:.3g} min" if value < 7200 else f"{value / 3600:.3g} h"


def _known(number: int) -> bool:
    return number in {int(s) for s in signal.Signals}
