"""Free text as numbers: TF-IDF over a bounded vocabulary, reduced by singular value decomposition.

:func:`learn` does what scikit-learn's TfidfVectorizer and TruncatedSVD do to the training rows and
keeps the outcome as plain numbers (:class:`Words`), which travel in the artifact's schema. To read
a text by them takes Python and numpy alone: the same for a million rows and for one.

A copy of this file travels in every artifact, so it imports nothing of FlowML.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .tables import Array

MOST_TERMS = 2_000  # words and pairs of words
MOST_NUMBERS = 24  # that a text becomes, beside its length
MOST_ROWS = 20_000  # that the vocabulary and the decomposition are learnt from
MOST_CHARS = 4_000  # of one text
LEAST_CHARS = 40  # where time allows no more than that, a text is not worth reading
CHARS_PER_S = 3_000_000  # that are read in a second on a slow core
EVERYWHERE = 0.95  # a word in more than this share of the texts tells none from another
ROWS_AT_ONCE = 4_096
WORD = r"(?u)\b\w\w+\b"  # scikit-learn's own


@dataclass(frozen=True)
class Words:
    """What was learnt of a column: ``components`` and ``idf`` have a row for each of ``terms``.

    Of a text, its first ``chars`` characters are read. Both matrices hold rounded numbers, so that
    they are the same before and after they were written as JSON.
    """

    terms: tuple[str, ...]
    idf: Array
    components: Array
    chars: int

    @property
    def width(self) -> int:
        return int(self.components.shape[1])

    def as_json(self) -> dict[str, Any]:
        return {
            "terms": list(self.terms),
            "idf": self.idf.tolist(),
            "components": self.components.tolist(),
            "chars": self.chars,
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Words:
        return cls(
            tuple(told["terms"]),
            np.array(told["idf"], dtype=np.float64),
            np.array(told["components"], dtype=np.float64),
            int(told["chars"]),
        )

    @cached_property
    def _known(self) -> dict[str, int]:
        return {term: place for place, term in enumerate(self.terms)}

    def numbers(self, texts: Sequence[str]) -> Array:
        """len(texts) x (1 + width): how many words each has, then its place by the components.

        A text without any known word (an empty one, a gap) is at the origin.
        """
        out = np.zeros((len(texts), 1 + self.width))
        for start in range(0, len(texts), ROWS_AT_ONCE):
            self._read(texts[start : start + ROWS_AT_ONCE], out[start : start + ROWS_AT_ONCE])
        return out

    def _read(self, texts: Sequence[str], out: Array) -> None:
        known = self._known
        places: list[int] = []
        tfs: list[float] = []
        ends: list[int] = []
        for row, text in enumerate(texts):
            words = tokens(text[: self.chars])
            out[row, 0] = len(words)
            pairs = map(" ".join, itertools.pairwise(words))
            counts = Counter(known[term] for term in (*words, *pairs) if term in known)
            places += counts
            tfs += counts.values()
            ends.append(len(places))
        if not places:
            return
        weights = (1.0 + np.log(tfs)) * self.idf[places]
        rows = np.repeat(np.arange(len(texts)), np.diff(ends, prepend=0))
        lengths = np.sqrt(np.bincount(rows, weights**2, minlength=len(texts)))
        weights /= lengths[rows]
        # No matrix product: its native threads would not survive the forks that come after.
        filled = np.flatnonzero(np.diff(ends, prepend=0))
        starts = np.concatenate(([0], np.array(ends)[filled][:-1]))
        out[filled, 1:] = np.add.reduceat(weights[:, None] * self.components[places], starts)


_tokens = re.compile(WORD)


def tokens(text: str) -> list[str]:
    return _tokens.findall(text.lower())


def chars_for(texts: Sequence[str], seconds: float) -> int:
    """How many characters of each text can be read in so many seconds, all texts taken together.

    0 where that is too little to be of use.
    """
    if not len(texts):
        return MOST_CHARS
    lengths = np.sort([min(len(text), MOST_CHARS) for text in texts])
    room = seconds * CHARS_PER_S
    if lengths.sum() <= room:
        return MOST_CHARS
    # With a limit of lengths[i], texts up to i count in full and all others with the limit.
    whole = np.concatenate(([0], np.cumsum(lengths)[:-1]))
    costs = whole + lengths * (len(lengths) - np.arange(len(lengths)))
    fits = int(np.searchsorted(costs, room, side="right"))
    limit = int((room - whole[fits]) // (len(lengths) - fits))
    return limit if limit >= LEAST_CHARS else 0


def learn(texts: Sequence[str], *, chars: int, width: int, seed: int) -> Words | str:
    """Learn from training rows; or say why there is nothing to learn ("it is free text in …").

    Needs scikit-learn. Computes with native threads: do it in a fork of its own.
    """
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text for text in texts if text.strip()]
    if len(texts) > MOST_ROWS:
        chosen = np.random.default_rng(seed).choice(len(texts), MOST_ROWS, replace=False)
        texts = [texts[row] for row in np.sort(chosen)]
    least = max(3, len(texts) // 1_000)  # rows that a word must be in
    vectorizer = TfidfVectorizer(
        token_pattern=WORD,
        ngram_range=(1, 2),
        sublinear_tf=True,
        min_df=least,
        max_df=EVERYWHERE,
        max_features=MOST_TERMS,
    )
    try:
        table = vectorizer.fit_transform([text[:chars] for text in texts])
    except ValueError:  # no text, too few for a word to be in enough, or all words in all
        return "it is free text in which no word tells some rows from others"
    width = min(width, table.shape[1] - 1, table.shape[0] - 1)
    if width < 1:
        return "it is free text in which no word tells some rows from others"
    svd = TruncatedSVD(width, random_state=seed % 2**32).fit(table)
    return Words(
        tuple(vectorizer.get_feature_names_out().tolist()),
        _rounded(vectorizer.idf_),
        _rounded(svd.components_.T),
        chars,
    )


def _rounded(values: Array) -> Array:
    """Five significant digits: enough, and a third of the text of all of them."""
    return np.array([float(f"{x:.5g}") for x in values.ravel()]).reshape(values.shape)
