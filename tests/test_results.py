"""What is published agrees with the committed notebooks, and records are put in words rightly."""

import pytest

from cvlab import records
from cvlab.tools import results


def record(value, unit="fraction", name="accuracy", **tags):
    return {"name": name, "value": value, "unit": unit, "tags": tags}


def test_readme_and_stored_results_are_those_of_the_notebooks():
    """A table that was typed, or forgotten after a new run, would show numbers nobody measured."""
    for path, text in results.expected().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: python -m cvlab results"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (record(0.9, n=100), "90.0 % (82.6 to 94.5 %, n = 100)"),  # Wilson's interval
        (record(0.9), "90.0 %"),
        (record(0.9012, "ms", p10=0.85, p90=1.25), "0.901 ms (0.85 to 1.25)"),
        (record(12345.6, "images/s"), "12,346 images/s"),
        (record(999.7, "images/s", p10=99.96, p90=1234.5), "1,000 images/s (100 to 1,234)"),
        (record(0.9, n=10**200), "90.0 %"),  # no number of images
        (record(0.9, n="100"), "90.0 %"),
        (record(7.0, n=5), "700.0 %"),  # no share
        (record(-0.094, "points", n=10_000), "-0.094 points"),
    ],
)
def test_a_record_in_words_says_how_sure_it_is(given, text):
    assert records.in_words(given) == text


def test_a_headline_picks_its_record_by_name_and_tags():
    found = {
        "05": [record(0.8, engine="a"), record(0.7, engine="b"), {"claim": "c", "holds": True}]
    }
    wanted = {"notebook": "05", "what": "b's", "name": "accuracy", "tags": {"engine": "b"}}
    assert "| `05` | b's | 70.0 % |" in results.headlines(found, [wanted])


def test_several_records_become_their_mean_and_range():
    found = {"02": [record(value, seed=seed) for seed, value in enumerate((0.7, 0.8, 0.9))]}
    wanted = {"notebook": "02", "what": "w", "name": "accuracy"}
    expected = "80.0 % (mean of 3 seeds, 70.0 % to 90.0 %)"
    assert expected in results.headlines(found, [wanted])


@pytest.mark.parametrize("other", ["a CPU, avx2 avx512_vnni", None])  # None: an older record
def test_no_mean_is_made_over_machines(other):
    found = {"02": [record(0.7, seed=0) | {"device": "a CPU, avx2"}, record(0.8, seed=1)]}
    found["02"][1] |= {"device": other or "a CPU"}
    wanted = {"notebook": "02", "what": "w", "name": "accuracy"}
    with pytest.raises(results.ResultsError, match=r"02.*a CPU, avx2; a CPU.*No mean"):
        results.headlines(found, [wanted])


def test_a_table_says_which_machine_measured_what():
    """Rows of two machines stand under each other: times do not compare."""
    found = {name: [record(0.7) | {"device": device}] for name, device in (("1", "C"), ("2", "D"))}
    wanted = [{"notebook": name, "what": "w", "name": "accuracy"} for name in ("1", "2")]
    text = results.headlines(found, wanted)
    assert text.endswith(
        "\n\nMeasured on different machines, whose times do not compare: 1 on C; 2 on D."
    )
    assert results.headlines(found, wanted[:1]).endswith(" |\n\nMeasured on C.")


def test_a_headline_without_its_record_is_an_error_that_names_it():
    wanted = {"notebook": "05", "what": "w", "name": "accuracy", "tags": {"engine": "c"}}
    with pytest.raises(results.ResultsError, match=r"05 has no record 'accuracy'.*engine"):
        results.headlines({"05": [record(0.8, engine="a")]}, [wanted])


def test_only_what_stands_between_the_marks_is_replaced():
    readme = "before\n<!-- t -->\nold\n<!-- end -->\nafter <!-- end -->"
    assert results._put(readme, "t", "new") == readme.replace("old", "new")
    with pytest.raises(results.ResultsError, match="no place for the table 'u'"):
        results._put(readme, "u", "new")


def test_update_writes_what_is_expected_and_nothing_twice(tmp_path, monkeypatch):
    path = tmp_path / "data" / "results" / "a.json"
    monkeypatch.setattr(results, "expected", lambda: {path: "text\n"})
    assert results.update() == [path]
    assert path.read_text(encoding="utf-8") == "text\n"
    assert results.update() == []


def test_every_comparison_of_the_bench_becomes_a_table():
    stored = {"cpu": "C", "versions": "V", "source": "S"}
    stored["feeding"] = [{"way": "ours", "median": 160246.04, "times": 24.727}]
    text = results.bench(stored)
    wanted = {"what": "w", "table": "feeding", "usual": "theirs", "ours": "ours", "unit": "a s"}
    stored["feeding"].append({"way": "theirs", "median": 6481.6, "times": 1})
    told = results.peers(stored, [wanted | {"column": "median"}])
    assert "| w | 6,482 a s (theirs) | none measured | 160,246 a s (ours) |" in told
    told = results.peers(stored, [wanted | {"column": "median", "rival": "theirs"}])
    assert told.count("6,482 a s (theirs)") == 2
    assert "C; V; S." in text
    assert "| ours | 160,246 | 24.7 |" in text
