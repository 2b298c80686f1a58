"""What matters in a set of sentences: graph ranking, variety, key phrases, themes. Deterministic, bounded.

Source: Mihalcea and Tarau, "TextRank", EMNLP 2004 (ranking); Carbonell and Goldstein, "The Use of MMR", SIGIR 1998.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cached_property

from pop.models.extract.text import STOPWORDS, Sentence, words_of

GRAPH_LIMIT = 160  # sentences in the graph; more are preselected by their words
ITERATIONS = 20
DAMPING = 0.85

Vector = dict[str, float]


class Corpus:
    """Sentences with their weights."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.sentences = list(sentences)

    @cached_property
    def vectors(self) -> dict[int, Vector]:
        """A unit vector of word weights per sentence, by its order."""
        spread = Counter(word for sentence in self.sentences for word in set(sentence.words))
        count = len(self.sentences) or 1
        found = {}
        for sentence in self.sentences:
            weights = {
                word: times * math.log(1 + count / spread[word]) for word, times in Counter(sentence.words).items()
            }
            length = math.sqrt(sum(value * value for value in weights.values())) or 1.0
            found[sentence.order] = {word: value / length for word, value in weights.items()}
        return found

    @cached_property
    def scores(self) -> dict[int, float]:
        """How central each sentence is, 0 to 1, by its order; early sentences of a document count a little more."""
        chosen = self._preselected()
        ranks = self._graph_ranks(chosen)
        top = max(ranks.values(), default=1.0) or 1.0
        first: dict[str, int] = {}
        for sentence in self.sentences:
            first.setdefault(sentence.document, sentence.order)
        found = {}
        for sentence in self.sentences:
            early = 0.25 / (1 + (sentence.order - first[sentence.document]) / 4)
            leaning = 0.5 if leans_on_another(sentence.text) else 1.0
            found[sentence.order] = leaning * (ranks.get(sentence.order, 0.0) / top + early)
        return found

    def _preselected(self) -> list[Sentence]:
        if len(self.sentences) <= GRAPH_LIMIT:
            return self.sentences
        frequency = Counter(word for sentence in self.sentences for word in sentence.words)

        def weight(sentence: Sentence) -> float:
            return sum(frequency[word] for word in set(sentence.words)) / (8 + len(sentence.words))

        return sorted(self.sentences, key=lambda sentence: (-weight(sentence), sentence.order))[:GRAPH_LIMIT]

    def _graph_ranks(self, chosen: Sequence[Sentence]) -> dict[int, float]:
        edges = self._edges(chosen)
        strength = {order: sum(links.values()) for order, links in edges.items()}
        ranks = {sentence.order: 1.0 for sentence in chosen}
        for _ in range(ITERATIONS):
            ranks = {
                order: (1 - DAMPING)
                + DAMPING * sum(ranks[other] * value / strength[other] for other, value in edges[order].items())
                for order in ranks
            }
        return ranks

    def _edges(self, chosen: Sequence[Sentence]) -> dict[int, dict[int, float]]:
        """Similarities above a threshold, found through the words the sentences share."""
        by_word: dict[str, list[tuple[int, float]]] = defaultdict(list)
        edges: dict[int, dict[int, float]] = {sentence.order: {} for sentence in chosen}
        for sentence in chosen:
            near: dict[int, float] = defaultdict(float)
            for word, value in self.vectors[sentence.order].items():
                for other, weight in by_word[word]:
                    near[other] += value * weight
                by_word[word].append((sentence.order, value))
            for other, similarity in near.items():
                if similarity > 0.08:
                    edges[sentence.order][other] = edges[other][sentence.order] = similarity
        return edges

    def best(self, count: int, *, among: Sequence[Sentence] | None = None, variety: float = 0.6) -> list[Sentence]:
        """The `count` most central sentences that do not repeat each other, best first."""
        pool = sorted(among if among is not None else self.sentences, key=lambda s: (-self.scores[s.order], s.order))
        pool = pool[: max(60, 4 * count)]
        chosen: list[Sentence] = []
        while pool and len(chosen) < count:

            def gain(sentence: Sentence) -> float:
                near = max((similarity(self.vectors[sentence.order], self.vectors[c.order]) for c in chosen), default=0)
                return self.scores[sentence.order] - variety * near

            winner = max(pool, key=lambda sentence: (gain(sentence), -sentence.order))
            pool.remove(winner)
            if all(similarity(self.vectors[winner.order], self.vectors[c.order]) < 0.75 for c in chosen):
                chosen.append(winner)
        return chosen

    def nearest(self, text: str, *, least: float = 0.12) -> list[Sentence]:
        """Sentences by their similarity to `text`, the nearest first; those below `least` are left out."""
        asked = Counter(words_of(text))
        length = math.sqrt(sum(value * value for value in asked.values())) or 1.0
        vector = {word: value / length for word, value in asked.items()}
        rated = [(similarity(vector, self.vectors[s.order]), s) for s in self.sentences]
        return [s for value, s in sorted(rated, key=lambda pair: (-pair[0], pair[1].order)) if value >= least]

    def themes(self, count: int) -> list[list[Sentence]]:
        """Sentences in groups about the same thing, the largest first; a group has at least two sentences."""
        seeds = self.best(count, variety=1.2)
        if not seeds:
            return []
        centres = [self.vectors[seed.order] for seed in seeds]
        groups: list[list[Sentence]] = []
        for _ in range(6):
            groups = [[] for _ in centres]
            for sentence in self.sentences:
                near = [similarity(self.vectors[sentence.order], centre) for centre in centres]
                best = max(range(len(near)), key=lambda index: (near[index], -index))
                if near[best] > 0.02:
                    groups[best].append(sentence)
            centres = [_mean([self.vectors[s.order] for s in group]) if group else {} for group in groups]
        return sorted((group for group in groups if len(group) > 1), key=lambda group: (-len(group), group[0].order))


_LEANING = re.compile(
    r"(however|furthermore|moreover|otherwise|also|therefore|thus|then|finally|hence|but|and|so|instead|similarly|again|"
    r"additionally|its|e\.g|i\.e|in your|from this|they|it|he|she|that|these|those|here|there|such|as a result|in this|in that|in these|in case|for example|"
    r"for instance|note|see|this(?! pep))\b",
    re.IGNORECASE,
)


def leans_on_another(text: str) -> bool:
    """Whether a sentence begins as if another had been read before; out of its place it reads badly."""
    return bool(_LEANING.match(text))


def similarity(one: Vector, other: Vector) -> float:
    """The cosine of two unit vectors."""
    if len(one) > len(other):
        one, other = other, one
    return sum(value * other.get(word, 0.0) for word, value in one.items())


def _mean(vectors: Sequence[Vector]) -> Vector:
    total: Counter[str] = Counter()
    for vector in vectors:
        for word, value in vector.items():
            total[word] += value  # type: ignore[assignment]
    length = math.sqrt(sum(value * value for value in total.values())) or 1.0
    return {word: value / length for word, value in total.most_common(60)}


def key_phrases(sentences: Sequence[Sentence], count: int, background: Sequence[Sentence] = ()) -> list[str]:
    """The phrases of one to three words that these sentences keep coming back to, best first.

    Args:
        background: Sentences around them; a phrase that is as common there says little.
    """
    here, spelled = _grams(sentences)
    around, _ = _grams(background)
    share = len(sentences) / max(1, len(background)) if background else 0.0

    def score(gram: tuple[str, ...]) -> float:
        expected = around[gram] * share if background else 0.0
        return (here[gram] - 0.6 * expected) * (1 + 0.7 * (len(gram) - 1))

    least = 2 if len(sentences) > 4 else 1
    ranked = sorted((g for g in here if here[g] >= least), key=lambda gram: (-score(gram), gram))
    chosen: list[tuple[str, ...]] = []
    for gram in ranked:
        if not any(set(gram) & set(other) for other in chosen):
            chosen.append(gram)
        if len(chosen) == count:
            break
    return [spelled[gram].most_common(1)[0][0] for gram in chosen]


def _grams(sentences: Sequence[Sentence]) -> tuple[Counter[tuple[str, ...]], dict[tuple[str, ...], Counter[str]]]:
    counts: Counter[tuple[str, ...]] = Counter()
    spelled: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        tokens = ["" if "`" in token else token.strip(".,;:!?()[]{}\"'*") for token in sentence.text.split()]
        breaks = [token[-1:] in ".,;:!?)" or token[:1] == "(" for token in sentence.text.split()]
        for size in (1, 2, 3):
            for at in range(len(tokens) - size + 1):
                part = tokens[at : at + size]
                if any(breaks[at : at + size - 1]) or not all(_is_content(token) for token in part):
                    continue
                gram = tuple(word for token in part for word in words_of(token))
                if len(gram) == size and (size > 1 or len(gram[0]) > 4):
                    counts[gram] += 1
                    spelled[gram][" ".join(part)] += 1
    return counts, spelled


_VERBS = tuple(["ing", "ed", "ly"])


def _is_content(token: str) -> bool:
    plain = token.lower()
    return plain.replace("-", "").isalpha() and plain not in STOPWORDS and not plain.endswith(_VERBS)
