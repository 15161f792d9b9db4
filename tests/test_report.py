"""The report: right numbers, readable in a browser, and nothing that a notebook holds can act."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from cvlab.machine import hardware
from cvlab.profiles import ParameterError
from cvlab.records import MIME, STAND_IN_LABEL
from cvlab.tools import cli, pages, report, runner
from cvlab.tools.executed import Executed

ROOT = Path(__file__).parent.parent


def png(colour="navy", size=(220, 110)) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def shown(**data):
    kinds = {"html": "text/html", "plain": "text/plain", "png": "image/png", "record": MIME}
    return new_output("display_data", data={kinds.get(k, k): v for k, v in data.items()})


def record(name, value, unit="fraction", device="a CPU", source="cifar10.tgz", **tags):
    about = {"device": device, "source": source, "profile": "smoke"}
    content = {"name": name, "value": value, "unit": unit, "tags": tags} | about
    return shown(record=content, plain="")


def claim(text, holds=True):
    return shown(record={"claim": text, "holds": holds}, plain="")


def exercise(name, outcome, said=""):
    return shown(record={"exercise": name, "outcome": outcome, "said": said}, plain="")


def figure(title, colour="navy"):
    return shown(png=png(colour), plain=f"Figure: {title}")


def store(path, *outputs, markdown=(), seconds=61.0):
    """An executed notebook: its markdown, then all outputs in one cell."""
    cells = [new_markdown_cell(text, id=f"text{i}") for i, text in enumerate(markdown)]
    cells.append(new_code_cell("run()", id="cell", outputs=list(outputs)))
    notebook = new_notebook(cells=cells)
    times = {"duration": seconds, "start_time": "2026-11-25T12:58:14.082272+00:00"}
    notebook.metadata.papermill = times
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(notebook))  # which also takes half a character


def plan(folder, *names, **more):
    folder.mkdir(parents=True, exist_ok=True)
    content = {"notebooks": names, "profile": "smoke", "data": "auto", "parameters": {}} | more
    (folder / "run.json").write_text(json.dumps(content))
    return folder


def page(path) -> BeautifulSoup:
    return BeautifulSoup(Path(path).read_text(encoding="utf-8"), "html.parser")


def table(soup, section):
    """The rows of a section's table as lists of the cells' texts."""

    def texts(row):
        return [" ".join(cell.get_text(" ").split()) for cell in row.find_all(["th", "td"])]

    return [texts(row) for row in soup.select(f"#{section} tbody tr")]


@pytest.fixture
def two_notebooks(tmp_path):
    """A run of two notebooks with claims, numbers, figures; everything is good."""
    folder = plan(tmp_path / "a run", "10_one", "11_two", parameters={"SEED": 3})
    numbers = [record("accuracy", 0.5, n=100, model="A"), record("accuracy", 0.8, n=10, model="B")]
    numbers += [record("latency_ms", 1.5, "ms", p10=1.25, p90=2, batch=1)]
    store(folder / "10_one.ipynb", claim("one holds"), *numbers, figure("A line"), seconds=200)
    store(folder / "11_two.ipynb", claim("two holds"), record("size", 13.7, "MB"), seconds=71.4)
    return folder


# --- what it says --------------------------------------------------------------------------------


def test_the_first_sentence_sums_up_and_each_notebook_has_its_line(two_notebooks):
    soup = page(report.write([two_notebooks]))
    verdict = "2 of 2 notebooks passed, 2 of 2 claims hold, 4 min 31 s"
    assert verdict in " ".join(soup.select_one(".verdict").text.split())
    assert table(soup, "notebooks") == [
        ["10_one", "✓ passed", "1/1", "3 min 20 s"],
        ["11_two", "✓ passed", "1/1", "1 min 11 s"],
    ]
    facts = dict(table(soup, "machine"))
    assert facts["Data"] == "cifar10.tgz"
    assert facts["Parameters"] == "SEED = 3"
    assert facts["Machine"] == "a CPU"
    assert facts["Date"] == "2026-11-25 12:58 UTC"


def test_each_notebook_is_linked_and_links_back(two_notebooks):
    index = report.write([two_notebooks])
    for link in page(index).select("#notebooks a"):
        there = index.parent / link["href"]
        back = page(there).select_one("header a")["href"]
        assert (there.parent / back).resolve() == index.resolve()


def test_a_share_has_wilsons_interval_and_a_timing_its_spread(two_notebooks):
    """50 of 100 and 8 of 10 are textbook examples: 40.4 to 59.6 and 49.0 to 94.3 %."""
    rows = table(page(report.write([two_notebooks])), "numbers")
    assert rows == [
        ["10_one", "accuracy", "model: A", "50.0", "%", "95 % 40.4 to 59.6", "100"],
        ["10_one", "accuracy", "model: B", "80.0", "%", "95 % 49.0 to 94.3", "10"],
        ["10_one", "latency_ms", "batch: 1", "1.5", "ms", "p10 to p90 1.25 to 2", ""],
        ["11_two", "size", "", "13.7", "MB", "", ""],
    ]


def test_seeds_become_their_mean_and_a_flood_stays_folded(tmp_path):
    """A row for each class or seed would drown the numbers that matter."""
    folder = plan(tmp_path / "r", "10")
    seeds = [record("accuracy", v, n=100, seed=i) for i, v in enumerate((0.4, 0.5, 0.6))]
    flood = [record("class_accuracy", i / 20, label=f"class {i}") for i in range(20)]
    store(folder / "10.ipynb", *seeds, *flood)
    soup = page(report.write([folder]))
    key = [row for row in soup.select("#numbers tbody tr") if "more" not in row.get("class", [])]
    assert len(key) == 1
    assert table(soup, "numbers")[0][3:] == [
        "50.0",
        "%",
        "95 % 40.4 to 59.6 3 seeds: 40.0 to 60.0",
        "100",
    ]
    assert len(table(soup, "numbers")) == 1 + 3 + 20


def test_what_failed_stopped_or_never_ran_is_told_apart(tmp_path):
    folder = plan(tmp_path / "r", "10_bad", "11_stopped", "12_missing", "13_cut", "14_false")
    error = new_output(
        "error", ename="ValueError", evalue="no \x1b[31mred\x1b[0m", traceback=["a\x1b[0m", "b"]
    )
    store(folder / "10_bad.failed.ipynb", claim("before"), error)
    store(folder / "11_stopped.running.ipynb", claim("early"))
    store(folder / "13_cut.ipynb")
    (folder / "13_cut.ipynb").write_text(
        (folder / "13_cut.ipynb").read_text(encoding="utf-8")[:-30]
    )
    store(folder / "14_false.ipynb", claim("yes"), claim("no", False), claim("no"))
    soup = page(report.write([folder]))
    assert [row[1] for row in table(soup, "notebooks")] == [
        "✗ failed",
        "◐ unfinished",
        "– not run",
        "– not run",
        "✓ passed",
    ]
    assert "1 of 5 notebooks passed, 3 of 4 claims hold" in soup.select_one(".verdict").text
    assert "bad" in soup.select_one(".verdict")["class"]
    assert "ValueError: no red" in soup.select_one("#failed p").text
    assert soup.select_one("#failed pre").text == "a\nb"
    assert "13_cut is cut short or damaged and counts as not run" in soup.text
    first = soup.select_one("#claims details")
    assert first.has_attr("open"), "a claim that does not hold must be seen without a click"
    assert table(soup, "claims")[0] == ["✗ does not hold", "no"]


def test_a_dead_kernel_leaves_no_error_and_is_told_all_the_same(tmp_path):
    folder = plan(tmp_path / "r", "10")
    store(folder / "10.failed.ipynb")
    assert "kernel died" in page(report.write([folder])).select_one("#failed").text


def test_numbers_of_the_stand_in_are_named_as_such(tmp_path):
    folder = plan(tmp_path / "r", "10")
    store(folder / "10.ipynb", record("accuracy", 0.5, source=STAND_IN_LABEL))
    assert STAND_IN_LABEL in page(report.write([folder])).select_one("header .warn").text


def test_several_machines_are_told_per_notebook(two_notebooks):
    store(two_notebooks / "11_two.ipynb", record("size", 1, "MB", device="a GPU"))
    content = json.loads((two_notebooks / "run.json").read_text(encoding="utf-8"))
    content["about"] = {"cpu": "a CPU", "memory_gb": 8.1, "gpu": None, "versions": "v"}
    (two_notebooks / "run.json").write_text(json.dumps(content))
    soup = page(report.write([two_notebooks]))
    assert [row[-1] for row in table(soup, "notebooks")] == ["a CPU", "a GPU"]
    machine = "a CPU; a GPU; started on a CPU, 8.1 GB, no GPU"
    assert dict(table(soup, "machine"))["Machine"] == machine


@pytest.mark.parametrize(
    ("about", "device", "machine"),
    [
        ({"cpu": "C, 2 logical cores, avx2"}, "C, 2 logical cores, avx2", "no GPU"),
        ({"cpu": "C", "gpu": "G"}, "G; C", "G"),
        ({"cpu": "C", "cores": 2, "gpu": "G"}, "G", "G"),  # as older runs and records have it
    ],
)
def test_a_run_on_one_machine_names_it_once(tmp_path, about, device, machine):
    folder = plan(tmp_path / "r", "10", about=about | {"memory_gb": 8})
    store(folder / "10.ipynb", record("size", 1, "MB", device=device))
    cores = ", 2 cores" if "cores" in about else ""
    expected = f"{about['cpu']}{cores}, 8 GB, {machine}"
    assert dict(table(page(report.write([folder])), "machine"))["Machine"] == expected


def test_numbers_of_two_machines_are_compared_with_a_word_and_never_averaged(tmp_path):
    """Seeds that a cluster's machines shared have no mean; two runs say what is whose."""
    one, two = (plan(tmp_path / name, "10_same", "11_moved", "12_old") for name in "ab")
    for folder, machine in ((one, "C, avx2"), (two, "C, avx2 avx512_vnni")):
        store(folder / "10_same.ipynb", record("s", 1, "ms", device="C"))
        store(folder / "11_moved.ipynb", record("s", 1, "ms", device=machine))
    seeds = [record("s", i, "ms", device=d, seed=i) for i, d in enumerate(("C", "C", "D"))]
    store(two / "12_old.ipynb", *seeds)
    soup = page(report.write([one, two]))
    (warning,) = (p.text for p in soup.select("#machine .warn"))
    assert warning.startswith("Measured on different machines: 11_moved. ")
    tags = [row[2] for row in table(soup, "numbers") if row[0] == "12_old"]
    assert tags == ["seed: 0", "seed: 1", "seed: 2"]


def test_several_runs_stand_side_by_side(two_notebooks, tmp_path):
    other = plan(tmp_path / "b" / "a run", "10_one", profile="class")
    numbers = [record("accuracy", 0.6, n=1000, model="A"), record("latency_ms", 3, "ms", batch=1)]
    store(other / "10_one.ipynb", claim("one holds", False), *numbers, figure("Another line"))
    index = report.write([two_notebooks, other])
    assert index == tmp_path / "comparison" / "index.html"
    soup = page(index)
    assert [p.text.split(":")[0].split()[-1] for p in soup.select(".verdict")] == ["(1)", "(2)"]
    notebooks = table(soup, "notebooks")
    assert notebooks[0] == [
        "10_one",
        "✓ passed",
        "1/1",
        "3 min 20 s",
        "✓ passed",
        "0/1",
        "1 min 01 s",
    ]
    assert notebooks[1][4:] == ["", "", ""]
    numbers = {tuple(row[:3]): row[4:] for row in table(soup, "numbers")}
    assert numbers["10_one", "accuracy", "model: A"] == [
        "50.0 95 % 40.4 to 59.6 , n = 100",
        "60.0 95 % 56.9 to 63.0 , n = 1,000",
        "+10.0 points",
    ]
    assert numbers["10_one", "latency_ms", "batch: 1"][-1] == "× 2"
    assert numbers["11_two", "size", ""][1:] == ["", ""]
    assert table(soup, "claims")[0] == ["✓ holds", "✗ does not hold", "one holds"]
    (pair,) = soup.select(".pair")
    assert [image["alt"] for image in pair.find_all("img")] == ["A line", "Another line"]
    assert "differ in profile" in soup.select_one("#machine").text
    for link in soup.select("#notebooks a"):
        assert (index.parent / link["href"]).is_file()


def test_exercises_show_what_each_student_solved(tmp_path):
    """The instructor puts the students' folders side by side; untouched notebooks stay away."""
    for name, outcomes in {"ann": ("solved", "wrong"), "ben": ("not attempted", "solved")}.items():
        folder = plan(tmp_path / name, "10_one", "11_two")
        done = [exercise(f"e{i}", o, f"said of {o}") for i, o in enumerate(outcomes)]
        store(folder / "10_one.ipynb", claim("c"), *done)
        store(folder / "11_two.ipynb", claim("c"), exercise("e3", "not attempted", "to do"))
    ann = page(report.write([tmp_path / "ann"]))
    assert table(ann, "exercises") == [["e0", "✓ solved"], ["e1", "✗ wrong : said of wrong"]]
    assert "1 of 2 solved" in ann.select_one("#exercises summary").text
    both = page(report.write([tmp_path / "ann", tmp_path / "ben"]))
    assert table(both, "exercises")[0] == ["e0", "✓ solved", "○ not attempted"]
    assert "ann: 1 of 2 solved · ben: 1 of 2 solved" in both.select_one("#exercises summary").text


def test_an_exercise_checked_again_counts_as_it_was_last(tmp_path):
    folder = plan(tmp_path / "a", "10_one")
    store(folder / "10_one.ipynb", exercise("e", "wrong", "no"), exercise("e", "solved", "yes"))
    assert table(page(report.write([folder])), "exercises") == [["e", "✓ solved"]]


# --- odd folders ---------------------------------------------------------------------------------


def test_wrong_usage_ends_with_2_and_says_what_to_do(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        assert cli.main(["report", str(tmp_path / folder)]) == 2
        message = capsys.readouterr().err
        assert folder in message
        assert "cvlab run --out" in message
    with pytest.raises(ParameterError, match="No run was given"):
        report.write([])


def test_notebooks_without_a_plan_are_reported_as_far_as_they_go(two_notebooks, capsys):
    (two_notebooks / "run.json").unlink()
    assert cli.main(["report", str(two_notebooks)]) == 0
    index = Path(capsys.readouterr().out.split("Report: ")[1].strip())
    assert len(table(page(index), "notebooks")) == 2
    assert "There is no run.json" in page(index).text
    for text in ('{"notebooks": [', "[" * 100_000):
        (two_notebooks / "run.json").write_text(text)
        assert "run.json is damaged" in page(report.write([two_notebooks])).text


def test_a_name_that_ends_like_a_failed_run_is_a_name_too(tmp_path):
    folder = plan(tmp_path / "r", "10.failed")
    store(folder / "10.failed.ipynb", record("accuracy", 0.5))
    assert table(page(report.write([folder])), "numbers")[0][0] == "10.failed"


def test_a_folder_that_cannot_be_written_is_named(two_notebooks, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(two_notebooks), "--out", str(tmp_path / "file" / "x")]) == 2
    assert "--out" in capsys.readouterr().err


def test_a_run_ends_by_naming_its_report(tmp_path, monkeypatch, capsys):
    """Also a failed one; and a report that cannot be made hides neither the table nor the code."""

    def execute(plan, out, **how):
        runner._begin(plan, out, resume=False)
        store(out / "00_environment.failed.ipynb")
        return [Executed("00_environment", "failed", error="X: y")]

    monkeypatch.setattr(runner, "execute", execute)
    assert cli.main(["run", "00", "--out", str(tmp_path / "r")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {tmp_path / 'r' / 'index.html'}"

    def broken(runs, out=None):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(report, "write", broken)
    assert cli.main(["run", "00", "--out", str(tmp_path / "r")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any("00_environment" in line and "X: y" in line for line in lines)
    assert lines[-1].startswith("No report was made (RuntimeError: two lines)")


def test_run_json_says_where_it_ran_and_older_ones_are_read(tmp_path):
    plan_ = runner.Plan(["00_environment"], "smoke", "auto", {"SEED": 1})
    runner._begin(plan_, tmp_path, resume=False)
    about = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["about"]
    assert {"cpu", "memory_gb", "gpu", "versions", "started"} == set(about)
    assert about["cpu"] == hardware().name
    assert runner.read_plan(tmp_path) == plan_
    assert runner.read_plan(plan(tmp_path / "old", "10")).notebooks == ["10"]


# --- a notebook's page ---------------------------------------------------------------------------


def test_folded_sources_tables_and_formulas_survive_the_cleaning(tmp_path):
    folder = plan(tmp_path / "r", "10", "11")
    body = '<pre style="background: #f0f0f0"><span style="color: #007020">def</span></pre>'
    badge = "[![Open in Colab](https://colab.research.google.com/x.svg)](https://colab.example)"
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}
    outputs = [
        shown(html=f"<details><summary>cvlab.f (3 lines)</summary>{body}</details>"),
        shown(html=pd.DataFrame({"a": [1, 2]}).to_html(), plain="a"),
        shown(html="<style>p {color: red}</style><p>kept</p>", plain=""),
        shown(plain="VBox(children=())", **widget),
        new_output("stream", text="10%\r50%\r100%\ndone"),
    ]
    text = "formula $x^2$ and\n\n$$\\frac{a}{b}$$\n\n[next](11.ipynb) [gone](../data/README.md)"
    store(folder / "10.ipynb", *outputs, markdown=[badge, text])
    report.write([folder])
    soup = page(folder / "html" / "10.html")
    assert soup.select_one("details summary").text == "cvlab.f (3 lines)"
    assert soup.select_one("details span")["style"] == "color:#007020"
    assert [cell.text for cell in soup.select(".output table tbody td")] == ["1", "2"]
    assert "color: red" not in soup.body.text
    assert "(a widget: open the notebook to move it)" in soup.text
    assert "VBox" not in soup.text
    assert "100%\ndone" in soup.text
    assert "50%" not in soup.text
    assert soup.find("a", string="Open in Colab")["href"] == "https://colab.example"
    assert not soup.find_all("img")
    assert [math["display"] for math in soup.find_all("math")] == ["inline", "block"]
    assert soup.find("a", string="next")["href"] == "11.html"
    assert not soup.find("a", string="gone")


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_formula_of_the_workbook_becomes_mathml(path):
    """What the converter does not know would stand there as TeX."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "markdown":
            continue
        soup = BeautifulSoup(pages.markdown(cell.source), "html.parser")
        prose = re.sub(r"`[^`]*`", "", cell.source)
        found = soup.find_all("math")
        assert len(found) == len(re.findall(r"\$\$.+?\$\$|\$[^$]+\$", prose, re.DOTALL))
        assert all("\\" not in math.text for math in found)


def test_passwords_are_not_passed_on(tmp_path):
    """STORAGE may be the address of a database, in run.json and in the notebook's own cells."""
    where = "postgresql://me:s3cret@host/db"
    folder = plan(tmp_path / "r", "10", parameters={"STORAGE": where})
    store(folder / "10.ipynb", new_output("stream", text=where), claim(where))
    report.write([folder])
    for path in (folder / "index.html", folder / "html" / "10.html"):
        text = path.read_text(encoding="utf-8")
        assert "postgresql://me:***@host/db" in page(path).text
        assert "s3cret" not in text


# --- notebook output is data ---------------------------------------------------------------------

ACT = "window.hit=1"
HTML = [
    f"<script>{ACT}</script>",
    f"<scr<script>ipt>{ACT}</script>",
    f'<img src=x onerror="{ACT}">',
    f'<img src="https://evil.example/x.png" alt="away" onload="{ACT}">',
    f"<svg onload='{ACT}'><script>{ACT}</script></svg>",
    f"<iframe srcdoc='<script>parent.{ACT}</script>'></iframe>",
    "<iframe src='https://evil.example'></iframe><object data='x'></object><embed src='x'>",
    "<meta http-equiv='refresh' content='0;url=https://evil.example'><base href='//evil.example'>",
    f"<form action='https://evil.example'><input autofocus onfocus='{ACT}'><button>x</form>",
    "<style>body {display: none}</style><link rel=stylesheet href='https://evil.example/x.css'>",
    "<div style='position: fixed; inset: 0; background: url(https://evil.example/x)'>over</div>",
    f"<a href='javascript:{ACT}'>press</a> <a href=' java\nscript:{ACT}'>press</a>",
    f"<a href='data:text/html,<script>{ACT}</script>'>press</a>",
    f"<a href=' d&#10;ata:text/html,<script>{ACT}</script>'>press</a>",
    f"<details open ontoggle='{ACT}'><summary>s</summary>d</details>",
    "<math><mtext><table><mglyph><style><!--</style>"
    f"<img title='--&gt;&lt;img src=1 onerror={ACT}&gt;'>",
    f"<math><annotation-xml encoding='text/html'><img src=x onerror={ACT}></annotation-xml></math>",
    f"<noscript><p title='</noscript><img src=x onerror={ACT}>'></noscript>",
    f"<table><td background='x' onclick={ACT}></table></main></body><script>{ACT}</script>",
    f"<!--><img src=x onerror={ACT}>--> <plaintext><img src=x onerror={ACT}>",
]
TEX = [rf"$\text{{<script>{ACT}</script><img src=x onerror={ACT}>}}$"]
TEX += [rf"$\href{{javascript:{ACT}}}{{x}}$", r"$\style{position:fixed}{x}$"]
TEX += [rf"[a](javascript:{ACT})", rf'![a](x"onerror="{ACT})']
NAME = f"12_<img src=x onerror={ACT}>"
STRANGE = [
    shown(**{"image/svg+xml": HTML[4], "plain": "svg"}),
    shown(**{"application/javascript": ACT, "plain": ACT}),
    shown(png='no png"><script>window.hit=1</script>', plain="Figure: x"),
    shown(png=png(), plain=f'Figure: "><img src=x onerror={ACT}>'),
    shown(**{"text/markdown": HTML[2], "text/latex": TEX[0]}),
    shown(**{"text/latex": TEX[0]}),
    new_output("stream", text=HTML[0] + "\x1b[31m\x00\ud800"),
    record(HTML[0], 1, HTML[2], HTML[0], HTML[2], **{HTML[0]: [HTML[2]], "n": "5", "p10": {}}),
    record("n", 0.5, n=-5), record("n", 7.0, n=5), record("n", 0.5, n=10**200),
    record("no number", HTML[0]), record(None, 1), record("true", True),
    shown(record={"claim": HTML[0], "holds": HTML[0]}, plain=""),
    exercise(HTML[0], "wrong", HTML[0]), exercise([HTML[2]], ["wrong"]), exercise("e", HTML[0]),
]  # fmt: skip
ERROR = new_output("error", ename=HTML[0], evalue=HTML[2], traceback=[f"\x1b[31m{HTML[2]}"])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """The report on a run that tries everything; returns (index, the notebooks' pages)."""
    root = tmp_path_factory.mktemp("hostile")
    about = {"cpu": HTML[0], "gpu": [HTML[2]], "started": HTML[0]}
    names = ["10_html", "11_failed", NAME, "../outside", f"missing{HTML[0]}".replace("/", "")]
    values = {"profile": HTML[0], "data": [HTML[2]], "parameters": {HTML[0]: HTML[2]}}
    folder = plan(root / f"<i onclick={ACT}>", *names, about=about, **values)
    both = [*HTML, *TEX]
    store(folder / "10_html.ipynb", *[shown(html=h) for h in HTML], *STRANGE, markdown=both)
    store(folder / "11_failed.failed.ipynb", ERROR)
    store(folder / f"{NAME}.ipynb", claim("c"), figure("f"))
    store(root / "outside.ipynb", claim("outside the run"))
    index = report.write([folder])
    assert not (folder / "outside.html").exists(), "a name in run.json led out of the folder"
    return index, sorted((folder / "html").glob("*.html"))


FORBIDDEN = "script iframe object embed form input button base link svg meta style frame applet"
LINKS = re.compile(r"https?://|mailto:|#|html/|\.\./index\.html$|data:image/(png|jpeg);base64,")


def assert_harmless(soup, ours):
    """Nothing but what the templates themselves put there can act; `ours` are their elements."""
    assert {k: len(soup.find_all(k)) for k in FORBIDDEN.split() if soup.find(k)} == ours
    for element in soup.find_all(True):
        for name, value in element.attrs.items():
            assert not name.startswith("on"), element
            if name in ("href", "src", "xlink:href", "action", "background"):
                assert LINKS.match("".join(value.split())), element
            if name == "style":
                assert "(" not in value
                assert "position" not in value
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "base-uri 'none'; form-action 'none'" in policy


def test_nothing_hostile_is_markup_in_the_report(hostile):
    soup = page(hostile[0])
    buttons = len(soup.select("th > button"))
    assert_harmless(soup, {"script": 1, "input": 1, "button": buttons, "meta": 3, "style": 1})
    assert f"<script>{ACT}</script>" in soup.select_one("#claims").text, "it is shown, as text"
    policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+';", policy)


def test_nothing_hostile_is_markup_in_the_notebooks_pages(hostile):
    assert len(hostile[1]) == 3
    for path in hostile[1]:
        soup = page(path)
        assert_harmless(soup, {"meta": 4, "style": 1})
        policy = soup.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
        assert "script-src" not in policy, "with default-src 'none' no script at all"
    assert "(an image that cannot be shown" in page(hostile[1][0]).text


def test_a_picture_is_shown_if_it_is_one():
    good = base64.b64decode(png())
    for content in (b"", b"GIF89a", good[:60], good[:40] + b"x" + good[41:]):
        assert pages.picture(base64.b64encode(content).decode()) is None
    assert pages.picture(png()).width == 220
    assert pages.picture(png("white", (8000, 7000))) is None, "would fill a browser's memory"


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("<p style='color: red; position: fixed'>p</p>", '<p style="color:red">p</p>'),
        (r"<p style='background: u\72l(x)'>p</p>", "<p>p</p>"),
        ("<p style='color: &#x28;'>p</p>", "<p>p</p>"),
        ("<img src=x alt='<script>&quot;' style='color: red'>", "&lt;script&gt;&quot;"),
        ("<p title='<img alt='>p</p><img alt='>'>", "<p>p</p>&gt;"),
        ("<ol start='<img alt='><li>p</ol>", '<ol start="&lt;img alt="><li>p</li></ol>'),
        (f"<img src=x{ACT}", ""),  # cut off
        ("<svg><p>p</p></svg>", "<p>p</p>"),  # as a browser reads it, p ends the drawing
        ("<svg><text>p</text></svg><title>p", ""),
        ("<math><mtext><b>b</b></mtext><b>c</b>", "<math><mtext><b>b</b></mtext></math><b>c</b>"),
        ("<math><annotation-xml encoding='text/html'><p>p", "<math></math>"),
        ("<table><tr><td>p", "<table><tbody><tr><td>p</td></tr></tbody></table>"),
        ("<a href='\x01da\tta:text/html,p'>p</a>", '<a rel="noopener noreferrer">p</a>'),
        ("<a href='file:///etc'>p</a>", '<a rel="noopener noreferrer">p</a>'),
        ("<b>\ud800</b>", "<b>?</b>"),  # half a character, which no UTF-8 can hold
    ],
)
def test_the_cleaner_leaves_this(given, left):
    assert pages.clean(given) == left


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_attribute_goes_when_looking_at_it_fails(monkeypatch):
    """The cleaner reports the error, and no more: what was not looked at must not stay."""
    assert (
        pages.clean(f'<img src="data:image/svg+xml;base64,{png()}">').count("data:image/png;") == 1
    )
    monkeypatch.setattr(pages, "picture", lambda data: 1 / 0)
    assert pages.clean(f'<img src="data:image/png;base64,{png()}" alt="a">') == "a"


# --- in a browser --------------------------------------------------------------------------------


def chromium() -> str:
    """The path of Chromium, of Debian's package, which is installed if that can be."""
    if not shutil.which("chromium") and shutil.which("apt-get") and os.geteuid() == 0:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run(["apt-get", "update"], **quiet)
        what = ["apt-get", "install", "-y", "--no-install-recommends", "chromium"]
        subprocess.run(what, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, **quiet)
    found = shutil.which("chromium")
    if not found:
        pytest.skip("Chromium is not installed, nor can Debian's package be (no apt-get or root)")
    return found


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield launched
        launched.close()


@pytest.fixture
def visit(browser):
    """A function (path, width) -> page; in the end: none asked for or complained of anything."""
    opened, trouble = [], []

    def open_page(path, width=1280):
        tab = browser.new_page(viewport={"width": width, "height": 800})
        tab.on("console", lambda message: trouble.append(message.text))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("dialog", lambda dialog: (trouble.append("a dialog"), dialog.dismiss()))
        tab.on(
            "request",
            lambda r: None if r.url.startswith(("file:", "data:")) else trouble.append(r.url),
        )
        tab.goto(Path(path).resolve().as_uri())
        opened.append(tab)
        return tab

    yield open_page
    for tab in opened:
        tab.close()
    assert trouble == []


@pytest.fixture(scope="module")
def long_report(tmp_path_factory):
    """(report on one run, on two, a notebook's page), with long words, wide tables, figures."""
    root = tmp_path_factory.mktemp("long")
    wide = pd.DataFrame({f"a long column {i}": [i / 7, i] for i in range(14)}).to_html()
    for name in ("left", "right"):
        folder = plan(root / name, "10_one", "11_two", parameters={"DATA": "/a/long/path" * 20})
        values = [9, 10.5, 1234, -0.2] if name == "left" else [1, 2, 3, 4]
        numbers = [record(f"metric_{v}", v, "ms", of="a_long_word_" * 9) for v in values]
        numbers += [record("accuracy", 0.5, n=100, seed=seed) for seed in range(3)]
        outputs = [*numbers, claim("a claim " * 30), figure("Red", "red"), figure("Tan", "tan")]
        outputs += [shown(html=wide), new_output("stream", text="x" * 500)]
        text = "# Title\n\n$$\\frac{\\eta}{\\sqrt{\\sum_{i \\le t} g_i^2}}$$ " + "$x_1+$ " * 60
        store(folder / "10_one.ipynb", *outputs, markdown=[text])
        store(folder / "11_two.failed.ipynb", ERROR)
    one = report.write([root / "left"])
    return one, report.write([root / "left", root / "right"]), one.parent / "html" / "10_one.html"


@pytest.mark.parametrize("width", [375, 1280])
def test_every_page_is_readable_at_phone_and_desktop_width(long_report, visit, width):
    """No sideways scrolling of the page, every figure there, and no letter too small."""
    for path in long_report:
        tab = visit(path, width)
        tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        assert tab.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), path
        images = tab.locator("img")
        assert images.count() >= 2
        for image in images.all():
            assert image.is_visible()
            assert image.evaluate("e => e.naturalWidth > 0 && e.clientWidth <= innerWidth")
        sizes = "all => all.map(e => parseFloat(getComputedStyle(e).fontSize))"
        assert min(tab.locator("td, th, p, a, pre, small").evaluate_all(sizes)) >= 11


def test_sorting_works_by_keyboard_and_by_number(long_report, visit):
    """As text, 1,234 and -0.2 would stand elsewhere; 50.0 is the mean over seeds."""
    tab = visit(long_report[0])
    values = tab.locator("#numbers tbody tr:not(.more) .value")
    assert values.all_text_contents() == ["9", "10.5", "1,234", "-0.2", "50.0"]
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.textContent") == "Value":
            break
    head = tab.locator("#numbers th", has_text="Value")
    tab.keyboard.press("Enter")
    assert values.all_text_contents() == ["-0.2", "9", "10.5", "50.0", "1,234"]
    assert head.get_attribute("aria-sort") == "ascending"
    tab.keyboard.press("Space")
    assert values.all_text_contents() == ["1,234", "50.0", "10.5", "9", "-0.2"]
    assert head.get_attribute("aria-sort") == "descending"
    assert tab.locator("#numbers th[aria-sort]").count() == 1


def test_folded_numbers_unfold_and_can_be_found(long_report, visit):
    tab = visit(long_report[0])
    rows = tab.locator("#numbers tbody tr:visible")
    assert rows.count() == 5
    tab.locator("#every").check()
    assert rows.count() == 8
    tab.locator("#every").uncheck()
    tab.locator("#find").fill("10_one nothing")
    assert rows.count() == 0
    tab.locator("#find").fill("10_one ACCURACY")
    assert rows.count() == 4
    assert tab.locator("#found").text_content() == "4 found"


def test_a_formula_is_drawn(long_report, visit):
    """As MathML with a box of its own, higher than a line: a fraction over a root."""
    box = visit(long_report[2]).locator('math[display="block"]').bounding_box()
    assert box["height"] > 30
    assert box["width"] > 30


def test_a_hostile_notebook_executes_nothing(hostile, visit):
    for path in (hostile[0], *hostile[1]):
        tab = visit(path)
        tab.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        for link in tab.locator("main a").all():
            if link.text_content() == "press":
                link.click(no_wait_after=True)
        assert tab.evaluate("window.hit") is None
        assert tab.url == path.resolve().as_uri()
        assert tab.locator("main").is_visible()
        assert all(tab.evaluate("[...document.images].map(e => e.naturalWidth > 0)"))


def test_the_policy_alone_stops_what_the_cleaning_would_miss(hostile, browser, tmp_path):
    """The second lock: scripts written into the finished pages do not run, nor can they ask."""
    attack = f"<script>{ACT}</script><img src=x onerror='{ACT}'><img src='http://127.0.0.1:9/x'>"
    for path in (hostile[0], *hostile[1]):
        broken = tmp_path / "broken.html"
        text = path.read_text(encoding="utf-8")
        assert text.count("</main>") == 1
        broken.write_text(text.replace("</main>", f"{attack}</main>"), encoding="utf-8")
        tab, asked = browser.new_page(), []
        tab.on("requestfinished", lambda r, asked=asked: asked.append(r.url))
        tab.goto(broken.as_uri())
        assert tab.evaluate("window.hit") is None
        assert all(url.startswith(("file:", "data:")) for url in asked)
        tab.close()
