"""Kept cases and fresh mutations of them: a reader withstands any bytes."""

import random
import sys
from pathlib import Path

import pytest

from tests.store.fuzzing import CORPUS, fuzz, load, read_all, write_tree

KEPT = sorted(path.name for path in CORPUS.glob("*.json"))


class TestCorpus:
    @pytest.mark.parametrize("name", KEPT)
    def test_every_kept_case_is_withstood(self, tmp_path: Path, name: str) -> None:
        """I1: what once broke a reader is read, or refused in one line."""
        write_tree(load(CORPUS / name), tmp_path)
        read_all(tmp_path, with_commands=True)

    def test_mutations_are_withstood(self, tmp_path: Path) -> None:
        """I1, I13, I14: flipped, cut, repeated, forged under a right checksum: nothing raises."""
        tries, failures = fuzz(random.Random(5), seconds=250, most=100, folder=tmp_path)
        assert (tries, failures) == (100, 0)

    def test_a_reader_that_fails_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """I1: the fuzzer sees an exception, and keeps what led to it."""
        corpus = tmp_path / "corpus"
        corpus.mkdir()
        (corpus / "plain.json").write_bytes((CORPUS / "plain.json").read_bytes())
        monkeypatch.setattr("tests.store.fuzzing.CORPUS", corpus)
        monkeypatch.setattr("moetrace.store.segment_reader.is_text", lambda _: True, raising=False)
        monkeypatch.setattr("moetrace.store.records.is_text", lambda _: True)
        tries, failures = fuzz(random.Random(1), seconds=250, most=100, folder=tmp_path)
        assert tries == 100
        assert 0 < failures == len(list(corpus.glob("found-*.json")))
        assert "antigravity" not in sys.modules
