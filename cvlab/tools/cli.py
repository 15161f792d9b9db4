"""The command line: `python -m cvlab run | tune | table | inspect | quantize | data ...`."""

import argparse
import ast
import sys
import time
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

from cvlab import data as cvdata
from cvlab import sources
from cvlab.machine import hardware, limit_threads, versions
from cvlab.paths import as_json, data_folder, project_root, store_text
from cvlab.profiles import PROFILES, ParameterError
from cvlab.tools import runner
from cvlab.tools.executed import mixture

# Everything else is imported by the command that needs it: it takes seconds.


def main(arguments: list[str] | None = None) -> int:
    """Parse, do, and return the exit code: 0 done, 1 something failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    limit_threads()
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        return options.do(options)
    except KeyboardInterrupt:
        if not options.kept:
            raise
        print(f"\nStopped. {options.kept}", file=sys.stderr)
        return 130
    except Exception as error:
        # Our own errors say what to do; of any other the traceback helps more.
        ours = type(error).__module__.startswith("cvlab.")
        if not (ours or isinstance(error, (FileNotFoundError, *options.told))):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cvlab", description=__doc__)
    parser.set_defaults(told=())  # errors of other kinds that a command's message is enough for
    parser.set_defaults(kept="")  # what a command that is stopped has kept, in words
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_notebooks(commands)
    _add_models(commands)
    data = commands.add_parser("data", help="prepare data ahead")
    data.add_argument("action", choices=["fetch"])
    data.add_argument("name", choices=sorted(sources.TITLES))
    data.set_defaults(do=_data)
    bench = commands.add_parser("bench", help="our feeding and training beside the usual ways")
    bench.add_argument("--data", default="auto", help="a folder, or 'synthetic'")
    bench.add_argument("--out", type=Path, help="also store the numbers in this JSON file")
    bench.set_defaults(do=_bench)
    gpu = commands.add_parser("gpu-check", help="try and time on a GPU what needs one")
    gpu.add_argument("--part", nargs="+", default=[], metavar="NAME", help="default: all of them")
    gpu.add_argument("--seconds", type=_positive, default=540, help="that a part may take (540)")
    gpu.add_argument("--data", default="auto", help="a folder, or 'synthetic'")
    gpu.add_argument("--out", type=Path, help="default: data/results/gpu_check.json")
    gpu.set_defaults(do=_gpu_check)
    address = commands.add_parser("address", help="show or set where this lies on GitHub")
    address.add_argument("to", nargs="?", metavar="OWNER/NAME", help="default: show it")
    address.set_defaults(do=_address)
    doctor = commands.add_parser("doctor", help="what is here, what is missing, what to do")
    doctor.set_defaults(do=_doctor)
    return parser


def _add_notebooks(commands) -> None:
    run = commands.add_parser("run", help="execute notebooks headless, with a table at the end")
    run.add_argument("notebooks", nargs="*", help="names or numbers (01); all if none is given")
    run.add_argument("--profile", choices=PROFILES, help="default: smoke")
    run.add_argument(
        "--data",
        help="a folder (with --scheduler: of the workers), or 'synthetic'; default: as README says",
    )
    run.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    run.add_argument("--out", type=Path, help="default: runs/<time>")
    run.add_argument("--jobs", type=_positive, default=1, help="notebooks side by side")
    run.add_argument(
        "--scheduler", metavar="tcp://HOST:PORT", help="run on this Dask cluster's workers"
    )
    run.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, or with the latest"
    )
    run.set_defaults(do=_run)
    report = commands.add_parser(
        "report", help="a page on a run, or on several; what changed from OLD to NEW"
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR")
    report.add_argument("--out", type=Path, help="default: RUN_DIR, or `comparison` beside it")
    report.add_argument("--history", type=Path, help="add a line on the last run to this file")
    report.set_defaults(do=_report)
    grade = commands.add_parser("grade", help="mark what a class has handed in")
    grade.add_argument("handed_in", type=Path, help="a folder for each student, or their files")
    grade.add_argument("--out", type=Path, default=Path("marks"), help="default: marks")
    grade.add_argument("--secret", help="seeds the fresh inputs; default: drawn, kept in --out")
    grade.add_argument("--weights", type=Path, help="a TOML file of points")
    grade.add_argument("--students", type=Path, help="a text file: a name, as handed in, a line")
    grade.add_argument("--due", type=datetime.fromisoformat, help="as in 2026-11-30T23:59")
    grade.add_argument("--seconds", type=_positive, default=10, help="of computing, an exercise")
    grade.add_argument("--jobs", type=_positive, default=1, help="students side by side")
    grade.add_argument("--scheduler", metavar="tcp://HOST:PORT", help="use this Dask cluster")
    grade.add_argument(
        "--execute", nargs="+", default=[], metavar="NOTEBOOK", help="whole ones, too"
    )
    grade.add_argument("--unprotected", action="store_true", help="even where nothing protects you")
    grade.set_defaults(do=_grade)
    for form, where in {"nbgrader": "source/NAME", "otter": "of the masters"}.items():
        export = commands.add_parser(form, help=f"write the exercises in {form}'s form")
        export.add_argument("folder", type=Path, help=where)
        export.add_argument("--seed", type=_positive, default=1, help="of the hidden tests' inputs")
        export.set_defaults(do=_export, form=form)
    publish = commands.add_parser("publish", help="copy a class run's notebooks over notebooks/")
    publish.add_argument("out", type=Path)
    publish.set_defaults(do=_publish)
    results = commands.add_parser(
        "results", help="make data/results/ and README's tables from the committed notebooks"
    )
    results.set_defaults(do=_results)


def _add_models(commands) -> None:
    tune = commands.add_parser("tune", help="add worker processes to a hyperparameter search")
    tune.add_argument("--storage", required=True, help="a journal file, or postgresql://...")
    tune.add_argument("--study", default="04_optuna", help="default: 04_optuna")
    tune.add_argument("--workers", type=_positive, default=1, help="processes on this machine")
    tune.add_argument("--trials", type=_positive, help="how many to add, by all workers together")
    tune.add_argument("--seconds", type=_positive, help="start no trial after so long")
    tune.add_argument(
        "--profile", choices=PROFILES, default="class", help="of a new study's trials"
    )
    tune.add_argument("--data", default="auto", help="a folder, or 'synthetic'")
    tune.set_defaults(do=_tune, told=(ValueError,))
    table = commands.add_parser("table", help="train every point of 04's table: half an hour")
    table.add_argument("--journal", type=Path, help="default: runs/04_table.jsonl")
    table.add_argument("--workers", type=_positive, default=2, help="processes, one thread each")
    table.add_argument("--data", default="auto", help="a folder, or 'synthetic'")
    table.add_argument("--out", type=Path, help="default: data/results/04_table.npz")
    table.set_defaults(do=_table)
    fast = commands.add_parser("fast", help="train 09's record: a log, and what it shows")
    fast.add_argument("--log", type=Path, help="default: runs/09_fast.jsonl")
    fast.add_argument("--seeds", type=_positive, default=10, help="0 to N - 1 (10)")
    fast.add_argument("--data", default="auto", help="a folder, or 'synthetic'")
    fast.add_argument("--check", action="store_true", help="only say what the log shows")
    fast.add_argument("--store", action="store_true", help="in data/results, for 09 to show")
    fast.set_defaults(do=_fast)
    quantize = commands.add_parser("quantize", help="make an ONNX classifier INT8, still right")
    inspect = commands.add_parser("inspect", help="what an ONNX classifier is and how it is fed")
    for command in (inspect, quantize):
        command.add_argument("model", type=Path, help="an ONNX classifier")
        command.add_argument("--data", default="cifar10", choices=sorted(sources.TITLES))
        command.add_argument("--where", default="auto", help="a folder, or 'synthetic'")
        command.add_argument("--mean", help="of its inputs, in 0..1: 0.5,0.5,0.5; default: found")
        command.add_argument("--std", help="likewise")
        command.add_argument("--order", choices=("rgb", "bgr"), help="of channels; default: found")
        command.add_argument("--classes", help="a,b,c in the order of its outputs; default: found")
    inspect.set_defaults(do=_inspect, told=(ValueError,))
    quantize.add_argument(
        "--max-drop", type=float, default=0.2, help="percentage points that may be lost (0.2)"
    )
    quantize.add_argument(
        "--target", choices=["any", "vnni"], default="any", help="CPUs that shall run it (any)"
    )
    quantize.add_argument("--out", type=Path, help="default: MODEL.int8.onnx")
    quantize.set_defaults(do=_quantize, told=(ValueError,))
    predict = commands.add_parser("predict", help="classify pictures with an exported model")
    predict.add_argument("model", type=Path, help="an ONNX file that takes pixels")
    predict.add_argument(
        "pictures", type=Path, nargs="+", metavar="PICTURE", help="files, or folders of them"
    )
    predict.set_defaults(do=_predict, told=(ValueError,))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} was given, expected 1 or more")
    return number


def value_of(text: str) -> Any:
    """A parameter's value as typed: a Python literal (3, 0.1, ["a", "b"], None), else text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _run(options) -> int:
    if options.scheduler and options.jobs > 1:
        raise ParameterError(
            f"--jobs {options.jobs} and --scheduler {options.scheduler} were both given; give one "
            "of them: jobs are processes of this machine, the scheduler's workers run one notebook "
            "each."
        )
    plan, out = _resumed(options) if options.resume else _planned(options)
    crew = None
    if options.scheduler:
        from cvlab.tools import cluster

        crew = cluster.crew(options.scheduler, plan)
    results = runner.execute(plan, out, jobs=options.jobs, resume=options.resume, crew=crew)
    mixed = mixture(record for result in results for record in result.records)
    print(f"\n{runner.table(results)}\n{mixed}\nThe executed notebooks and figures are in {out}")
    print(_page_of(out))
    return 0 if all(result.status == "passed" for result in results) else 1


def _resumed(options) -> tuple[runner.Plan, Path]:
    """The plan of an earlier run, and its folder."""
    if options.notebooks or options.profile or options.data or options.parameter:
        raise ParameterError("A resumed run keeps its own plan; give --resume and --out only.")
    runs = (project_root() / "runs").glob("*/run.json")
    out = options.out or max(runs, key=lambda path: path.stat().st_mtime, default=Path()).parent
    if not (out / "run.json").is_file():
        raise ParameterError("There is no run to resume; name its folder with --out.")
    return runner.read_plan(out), out


def _planned(options) -> tuple[runner.Plan, Path]:
    """The plan that the options say, and a folder for it."""
    parameters = {name: value_of(text) for name, text in options.parameter}
    for name in ("PROFILE", "DATA"):
        if name in parameters:
            raise ParameterError(f"Use --{name.lower()} in place of -p {name}.")
    names = runner.choose(options.notebooks)
    plan = runner.Plan(names, options.profile or "smoke", options.data or "auto", parameters)
    return plan, options.out or project_root() / "runs" / time.strftime("%Y-%m-%d_%H-%M-%S")


def _page_of(out: Path) -> str:
    """Write a finished run's report; says in one line where it is, or why there is none."""
    try:
        from cvlab.tools import report  # takes a second to import

        return f"Report: {report.write([out])}"
    except Exception as error:  # whatever it is: the run is kept and told
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"No report was made ({reason}). Again: python -m cvlab report {out}"


def _report(options) -> int:
    from cvlab.tools import changes, report, run_folder

    try:
        print(f"Report: {report.write(options.runs, options.out)}")
        if len(options.runs) == 2:
            print(f"\n{changes.table(*map(run_folder.read, options.runs))}")
        if options.history:
            changes.remember(run_folder.read(options.runs[-1]), options.history)
    except OSError as error:
        print(f"error: {error}. Name a folder that can be written with --out.", file=sys.stderr)
        return 2
    return 0


def _grade(options) -> int:
    from cvlab.tools.grading import grade

    print(grade.main(options))
    return 0


def _export(options) -> int:
    from cvlab.tools.grading import export

    print(*export.write(options.folder, options.form, options.seed), sep="\n")
    return 0


def _publish(options) -> int:
    from cvlab.tools.publish import publish

    names = publish(options.out)
    print(f"Published {', '.join(names)}. README's tables: python -m cvlab results")
    return 0


def _results(options) -> int:
    from cvlab.tools import results

    names = [str(path.relative_to(project_root())) for path in results.update()]
    print(f"Made anew: {', '.join(names)}." if names else "README and data/results are up to date.")
    return 0


def _tune(options) -> int:
    from cvlab.lessons.search import tune
    from cvlab.tools import workers

    if not (options.trials or options.seconds):
        raise ParameterError("Give --trials, --seconds or both; else the search would never end.")
    options.kept = "Finished trials are kept; the same command goes on."
    study = workers.add(
        options.study,
        options.storage,
        workers=options.workers,
        trials=options.trials,
        seconds=options.seconds,
        profile=options.profile,
        data=options.data,
    )
    counts = tune.statistics(study)
    print(", ".join(f"{counts[key]} {key}" for key in ("complete", "pruned", "failed")))
    mixed = mixture({"device": trial.user_attrs.get("machine")} for trial in study.trials)
    print(f"{options.study}: {tune.so_far(study)} in {options.storage}\n{mixed}".rstrip())
    return 0


def _table(options) -> int:
    from cvlab.lessons.search import table

    journal = options.journal or project_root() / "runs" / "04_table.jsonl"
    options.kept = "What was trained is kept; the same command goes on."
    table.generate(journal, options.data, options.workers)
    print(f"Written: {table.pack(journal, options.out or table.default_file())}")
    return 0


def _fast(options) -> int:
    from cvlab.lessons.fast import record

    log = options.log or project_root() / "runs" / "09_fast.jsonl"
    if options.check:
        lines = record.read(log)
    else:
        images = record.everything(cvdata.load("cifar10", options.data))
        options.kept = f"{log} is kept; the same command goes on."
        seeds = range(options.seeds)
        lines = record.keep_log(log, images, record.RECIPE, seeds, hardware().device)
    print(record.table(lines).to_string(float_format="{:.4f}".format))
    print(record.in_words(lines))
    if options.store:
        store_text(as_json(record.stored(lines)), project_root() / record.PUBLISHED)
    return 0


def _stated(options) -> dict[str, object]:
    """What the user says of a model, see `cvlab.tools.examine.examine`."""
    from cvlab.tools import examine

    given = {"order": options.order} if options.order else {}
    for key, kind in {"mean": float, "std": float, "classes": str}.items():
        if text := getattr(options, key):
            given[key] = examine.parse(text, kind)
    return given


def _quantize(options) -> int:
    from cvlab.tools import quantize

    out = options.out or options.model.with_suffix(".int8.onnx")
    options.kept = "What was measured is kept; the same command goes on."
    loaded = cvdata.load(options.data, options.where)
    print(loaded)
    limits = options.max_drop, options.target
    made = quantize.shrink(options.model, loaded, out, *limits, _stated(options))
    print(f"{made.table.round(4).T.to_string()}\n\n{made}\nWritten: {out}")
    return 0 if made.good else 1


def _inspect(options) -> int:
    from tempfile import TemporaryDirectory

    from cvlab.tools import examine

    loaded = cvdata.load(options.data, options.where)
    with TemporaryDirectory() as folder:
        found = examine.examine(options.model, loaded, Path(folder), _stated(options))
    for what, said in found.about.items():
        print(f"{what:<16} {said}")
    return 0


def _predict(options) -> int:
    from cvlab.lessons.engines import deploy

    pictures = []
    for path in options.pictures:
        found = (f for f in sorted(path.rglob("*")) if f.suffix.lower() in sources.PICTURES)
        pictures += found if path.is_dir() else [path]
    answers = deploy.classify(options.model, pictures)
    for picture, row in answers.iterrows():
        best = row.nlargest(3).items()
        print(f"{picture}: {', '.join(f'{name} {share:.1%}' for name, share in best)}")
    return 0 if len(answers) == len(set(pictures)) else 1


def _data(options) -> int:
    folder = data_folder()
    data = sources.read(options.name, folder)
    if data is None:
        return 1  # the warning has said why
    sizes = f"{len(data.train[1]):,} training and {len(data.test[1]):,} test images"
    print(f"{sources.TITLES[options.name]} is ready in {folder}: {data.source}, {sizes}")
    return 0


def _bench(options) -> int:
    from cvlab.tools import peers

    loaded = cvdata.load("cifar10", options.data)
    content = {"source": str(loaded), "cpu": hardware().name, "versions": versions()}
    print(*content.values(), sep="\n")
    for title, table in peers.report(loaded, options.data):
        print(f"\n{title}\n{table.round(3).to_string()}", flush=True)
        content[title] = table.reset_index().to_dict("records")
        if options.out:  # after each: what was measured is kept, whatever happens to the next
            store_text(as_json(content), options.out)
    return 0


def _gpu_check(options) -> int:
    from cvlab.tools import gpu_check, gpu_parts

    parts = gpu_parts.choose(options.part)
    out = options.out or project_root() / "data" / "results" / "gpu_check.json"
    options.kept = "What was measured is kept; name the other parts."
    good = gpu_check.check(parts, gpu_check.Context(options.data), out, options.seconds)
    print(f"Written: {out}")
    return 0 if good else 1


def _address(options) -> int:
    from cvlab.tools import address

    if options.to is None:
        line, agree = address.state(address.places())
        print(line)
        return 0 if agree else 1
    new = address.parse(options.to)
    changed = [str(path.relative_to(project_root())) for path in address.change(new)]
    print(f"{new} written to {', '.join(changed)}" if changed else f"{new} is named already")
    return 0


def _doctor(options) -> int:
    from cvlab.tools import doctor

    for line in doctor.report():  # each when it is found out
        print(line)
    return 0
