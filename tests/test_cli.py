"""The command line as its user meets it: exit codes, and every message read aloud."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from capfilt.cli import run
from capfilt.errors import Stopped
from capfilt.records import TABLES
from tests.small_run import SmallRun, files_of, training

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "ray", "pyarrow", "pydantic", "rich", "numpy", "PIL", "yaml", "fsspec")

Say = Callable[..., tuple[int, str, str]]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command: exit code, standard output, standard error."""

    def say(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return say


def write_recipe(path: Path, run_: SmallRun, **sections: object) -> str:
    path.write_text(yaml.safe_dump(run_.recipe(**sections).model_dump(mode="json")))
    return str(path)


@pytest.fixture(scope="module")
def done(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The recipe of a run that is done."""
    return write_recipe(tmp_path_factory.mktemp("done") / "recipe.yaml", small_run)


@pytest.fixture
def fresh(small_run: SmallRun, tmp_path: Path) -> str:
    """The recipe of a run that has not begun."""
    return write_recipe(tmp_path / "recipe.yaml", SmallRun(
        folder=tmp_path / "run", web=small_run.web, models=small_run.models
    ))  # fmt: skip


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-c", *arguments]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "model")])
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def test_help_is_quick_and_loads_nothing_heavy():
    program = (
        "import resource, sys, contextlib\n"
        "from capfilt.cli import run\n"
        "with contextlib.suppress(SystemExit): run(['--help'])\n"
        "usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(sorted(sys.modules), usage.ru_utime + usage.ru_stime, sep='\\n', file=sys.stderr)\n"
    )
    ran = subprocess.run(
        python(program), env=environment(), capture_output=True, text=True, check=True
    )
    modules, cpu_s = ran.stderr.splitlines()
    assert "whole loop on the built-in miniature web" in ran.stdout
    assert [name for name in HEAVY if f"'{name}'" in modules] == []
    assert float(cpu_s) < 0.5  # about 0.05


@pytest.mark.parametrize(
    "arguments",
    [[], ["fly"], ["run"], ["init", "run", "--captioner", "c", "--filter", "f"], ["run", "r", "x"]],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        run(arguments)
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("usage: capfilt")


def test_every_command_has_help(capsys):
    for command in ("init", "download", "train", "run", "status", "explain", "report", "demo"):
        with pytest.raises(SystemExit) as left:
            run([command, "--help"])
        assert left.value.code == 0
    assert "--set SECTION.KEY=VALUE" in capsys.readouterr().out


def init(out: Path, *more: str) -> list[str]:
    models = ["--captioner", "captioner", "--filter", "filter"]
    return ["init", "run", "--input", "{0..1}.tar", *models, "--out", str(out), *more]


def test_init_writes_a_recipe_and_says_what_comes_next(say, tmp_path):
    out = tmp_path / "recipe.yaml"
    code, said, _ = say(*init(out, "--human", "human.tar"))
    assert code == 0
    assert said == f"{out} is written; look through it, then: capfilt run {out}\n"
    assert yaml.safe_load(out.read_text())["train"]["human"] == "human.tar"


def test_init_does_not_overwrite(say, tmp_path):
    out = tmp_path / "recipe.yaml"
    out.write_text("mine")
    code, _, err = say(*init(out))
    assert code == 2
    assert err == (f"capfilt: {out}: 1 problem\n  is there already; remove it, or name another\n")
    assert out.read_text() == "mine"


def test_init_into_a_missing_folder_is_one_line(say, tmp_path):
    out = tmp_path / "none" / "recipe.yaml"
    code, _, err = say(*init(out))
    assert (code, err) == (1, f"capfilt: {out}: cannot be written: No such file or directory\n")


def test_a_recipe_that_is_not_there_exits_with_2(say):
    code, _, err = say("run", "none.yaml")
    assert code == 2
    assert err == (
        "capfilt: none.yaml: 1 problem\n  no such file; `capfilt init` writes a recipe\n"
    )


def test_wrong_settings_are_told_together(say, fresh):
    code, _, err = say("run", fresh, "--set", "seed=-1", "--set", "select.polcy=x")
    assert code == 2
    assert err.startswith(f"capfilt: {fresh}: 2 problems\n  seed: found -1; ")
    assert "did you mean policy?" in err


def test_rounds_obey_the_recipes_rules(say, fresh):
    code, _, err = say("run", fresh, "--rounds", "0")
    assert code == 2
    assert "rounds: found 0; input should be greater than or equal to 1" in err
    code, _, err = say("run", fresh, "--rounds", "2")
    assert code == 2
    assert "set train.human to shards of human pairs" in err


def test_a_run_folder_that_cannot_be_written_is_one_line(say, fresh, tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    code, _, err = say("index", fresh, "--set", f"run={folder}")
    assert code == 1
    assert err.splitlines()[-1].startswith(f"capfilt: {folder}/inputs/round-000.json: cannot ")
    assert err.endswith("a part of the path is a file; check the path\n")


def test_a_model_that_is_not_there_is_one_line(say, fresh, tmp_path):
    model = f"caption.model={tmp_path}/none"
    code, _, err = say("status", fresh, "--set", model)
    assert code == 1
    assert err == (
        f"capfilt: {tmp_path}/none: no such directory; give a model directory or a hub id\n"
    )


def test_shards_that_are_not_there_are_named(say, fresh, tmp_path):
    pattern = f"{tmp_path}/{{0..2}}.tar"
    code, _, err = say("index", fresh, "--set", f"input.shards='{pattern}'")
    assert code == 1
    assert err == (
        f"capfilt: {pattern}: 3 of 3 shards do not exist: "
        f"{tmp_path}/0.tar, {tmp_path}/1.tar, {tmp_path}/2.tar\n"
    )


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ("download", "download.urls: not set, so there is nothing to download"),
        ("train", "train.human: not set, so there is nothing to train on"),
    ],
)
def test_a_stage_the_recipe_is_without_exits_with_2(stage, problem, say, done):
    code, _, err = say(stage, done)
    assert code == 2
    assert err == f"capfilt: {done}: 1 problem\n  {problem}\n"


def test_a_stage_before_its_time_names_the_one_to_run(say, fresh):
    code, _, err = say("score", fresh)
    assert code == 1
    assert "round 0, caption: 2 of 2 shards are not done yet (first: 0)" in err
    assert "run `capfilt caption` first" in err


def test_a_stage_that_is_done_shows_its_funnel_again(say, done):
    code, out, _ = say("index", done)
    assert code == 0
    assert out == (
        "index     24 samples, 19 kept; image_missing 2, image_too_large 1, image_too_small 1, "
        "image_unreadable 1\n"
    )


def test_other_settings_are_shown_and_refused(say, done):
    code, _, err = say("run", done, "--set", "caption.top_p=0.5")
    assert code == 1
    assert "  options.top_p: 0.9 -> 0.5\n" in err
    assert "on_changed_settings: recompute" in err


def test_a_shard_that_fails_exits_with_1_and_is_named(say, fresh, small_run, tmp_path):
    web = small_run.with_own_web(tmp_path / "web").web
    whole = (web / "00001.tar").read_bytes()
    (web / "00001.tar").write_bytes(whole[: len(whole) // 2])
    code, _, err = say("index", fresh, "--set", f"input.shards='{web}/{{00000..00001}}.tar'")
    assert code == 1
    assert "capfilt: 1 of 2 shards failed; the others are done, and the same command" in err
    assert f"  index, shard 1: {web}/00001.tar: damaged at byte " in err


def test_the_status_of_a_fresh_run_is_that_nothing_is_done(say, fresh, tmp_path):
    code, out, _ = say("status", fresh)
    assert code == 0
    assert out.startswith(f"run {tmp_path}/run: nothing is there yet\n")
    assert out.count("0/2") == 6
    assert not (tmp_path / "run").exists()


def test_status_as_json_is_for_machines(say, done):
    code, out, _ = say("status", done, "--json")
    stages = json.loads(out)
    assert code == 0
    assert [s["stage"] for s in stages] == [
        "index",
        "caption",
        "score",
        "select",
        "dedup",
        "publish",
    ]
    assert all(s["done"] and s["remainder"] == 0 and s["shards_total"] == 2 for s in stages)
    assert stages[0]["dropped"]["image_missing"] == 2
    assert Path(stages[0]["folder"]).is_dir()


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("good-0", ["shard 0, good-0", "JPEG, 48 x 48 px", '"a red circle 0"', "kept", "plans"]),
        ("copy", ["duplicate_exact (1.000) of", ", which stays"]),
        ("original", ["it stays, and stands for 1 other image"]),
        ("cut", ["not usable   image_unreadable: "]),
        ("no-text", ["none", "text_missing"]),
        ("http://web.example/28", ["url          http://web.example/28"]),
        ("same-name", ['"the first of its name"', '"the second of its name"']),
        ("LOUD", ["1,920 more characters"]),
    ],
)
def test_a_sample_is_explained(key, lines, say, done, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    code, out, _ = say("explain", done, key)
    assert code == 0
    assert [line for line in lines if line not in out] == []


def test_a_key_may_be_given_by_its_first_digits(say, done):
    _, out, _ = say("explain", done, "good-1")
    key = out.splitlines()[0]
    assert say("explain", done, key[:6].upper())[1] == out
    assert say("explain", done, key)[1] == out
    assert say("explain", done, key[:5])[0] == 1


def test_a_key_nobody_has_is_one_line(say, done):
    code, out, err = say("explain", done, "nobody")
    assert (code, out) == (1, "")
    assert err == (
        "capfilt: 'nobody': no sample has this key, source key or URL; "
        "keys are 32 hex digits, of which the first 6 are enough\n"
    )


@pytest.mark.parametrize("number", ["-1", "1", "5000"])
def test_a_round_that_the_recipe_does_not_have_is_refused(number, say, done):
    code, out, err = say("explain", done, "good-1", "--round", number)
    assert (code, out) == (2, "")
    assert f"--round: found {number}; rounds of the recipe: 0 to 0" in err


def test_nothing_can_be_explained_before_the_index(say, fresh, tmp_path):
    code, _, err = say("explain", fresh, "good-0")
    assert code == 1
    assert err == f"capfilt: {tmp_path}/run: nothing is indexed yet; run `capfilt index`\n"


def test_results_under_other_settings_are_told_where_they_would_be_missed(say, done):
    line = "results of caption exist under other settings (-> now): options.top_p: 0.9 -> 0.5\n"
    changed = ["--set", "caption.top_p=0.5"]
    code, out, _ = say("status", done, *changed)
    assert (code, out.count(line)) == (0, 1)
    assert say("explain", done, "good-0", *changed)[1].endswith(line)
    assert say("select", done, *changed)[2].endswith(f"run `capfilt score` first; {line}")
    assert "results of" not in say("status", done)[1]


def test_a_sample_indexed_under_other_settings_only_is_not_called_missing(say, done, small_run):
    code, _, err = say("explain", done, "good-0", "--set", "index.max_side_px=100")
    assert (code, err) == (
        1,
        f"capfilt: {small_run.folder}: results of index exist under other settings (-> now): "
        "options.max_side_px: 8192 -> 100\n",
    )


def test_a_report_goes_into_the_run_s_folder(say, small_run, tmp_path, monkeypatch):
    run_ = small_run.copied_to(tmp_path / "run")
    recipe = write_recipe(tmp_path / "recipe.yaml", run_)
    monkeypatch.chdir(tmp_path)
    code, out, _ = say("report", recipe, "--set", "dedup.exact=false")
    page = tmp_path / "run" / "report.html"
    assert code == 0
    assert out == (
        f"{page} is written; open it in a browser\n"
        "results of dedup exist under other settings (-> now): options.exact: true -> false\n"
    )
    assert page.is_file()
    assert not (tmp_path / "report.html").exists()


def test_a_report_goes_where_it_is_sent(say, done, tmp_path):
    code, out, _ = say("report", done, "--out", f"{tmp_path}/page.html")
    assert (code, out) == (0, f"{tmp_path}/page.html is written; open it in a browser\n")


def test_a_run_that_has_not_begun_has_no_place_for_a_report(say, fresh, tmp_path):
    code, _, err = say("report", fresh)
    assert (code, err) == (
        1,
        f"capfilt: {tmp_path}/run: nothing is there yet; run `capfilt run` first, or name a file "
        "with --out\n",
    )
    assert not (tmp_path / "run").exists()


def test_an_index_without_texts_is_warned_of(say, fresh, monkeypatch):
    code, out, _ = say("index", fresh, "--set", "input.text_field=none")
    warning = out.splitlines()[1]
    assert code == 0
    assert warning.startswith("warning: 24 of the 24 samples of the first shards have no web text ")
    assert "sample 'good-0' has a .txt; set input.text_field: null" in warning


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped("stopped on request; the same")])
def test_a_stop_exits_with_75(stop, say, fresh, monkeypatch):
    def bootstrap(*args: object, **named: object) -> None:
        raise stop

    monkeypatch.setattr("capfilt.stages.loop.bootstrap", bootstrap)
    code, _, err = say("run", fresh)
    assert code == 75
    assert err.startswith("capfilt: stopped")
    assert "the same" in err


def test_download_without_img2dataset_names_the_command(say, fresh, tmp_path, monkeypatch):
    (tmp_path / "urls.csv").write_text("url,alt\nhttp://example.org/a.jpg,a cat\n")
    monkeypatch.setitem(sys.modules, "img2dataset", None)
    settings = [f"download.urls={tmp_path}/urls.csv", "input.shards=null"]
    code, _, err = say("download", fresh, *(a for s in settings for a in ("--set", s)))
    assert code == 1
    assert err == (
        "capfilt: download needs img2dataset, which is not installed; "
        "run `pip install 'capfilt[download]'`\n"
    )


def test_a_pool_without_ray_names_both_cures(say, fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "capfilt.runtime.cluster", None)
    code, _, err = say("run", fresh, "--set", "pool.kind=ray")
    assert code == 1
    assert err == (
        "capfilt: pool.kind is ray, and Ray is not installed; run `pip install 'ray[default]'`, "
        "or set pool.kind: local\n"
    )


def test_schemas_are_written_for_every_table(say, tmp_path):
    code, out, _ = say("schemas", str(tmp_path / "schemas"))
    assert (code, out) == (0, f"schemas written to {tmp_path}/schemas/\n")
    assert files_of(tmp_path / "schemas") == files_of(ROOT / "schemas")
    assert len(files_of(tmp_path / "schemas")) == len(TABLES)


def test_a_file_in_the_way_of_a_folder_is_told(say, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = say("demo", "--folder", f"{tmp_path}/file/demo")
    assert (code, err) == (
        1,
        f"capfilt: {tmp_path}/file/demo: cannot be written: Not a directory\n",
    )


def test_a_demo_too_small_for_its_faults_is_refused(say, tmp_path):
    code, _, err = say("demo", "--pages", "5", "--folder", str(tmp_path / "demo"))
    assert code == 2
    assert "--pages: found 5; at least 40 have room for every fault" in err
    assert not (tmp_path / "demo").exists()


def test_a_reader_that_leaves_early_is_no_error_to_speak_of(done):
    program = "import sys; from capfilt.cli import main; main()"
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        python(program, "status", done, "--json"), env=environment(), stdout=writing,
        stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, "")


@pytest.mark.slow
def test_init_and_run_are_all_it_takes(say, small_run, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    models = [f"{small_run.models}/captioner", "--filter", f"{small_run.models}/filter"]
    shards = f"{small_run.web}/{{00000..00001}}.tar"
    code, _, _ = say(
        "init", str(tmp_path / "run"), "--input", shards, "--captioner", *models,
        "--out", str(recipe),
    )  # fmt: skip
    assert code == 0
    small = ["--set", "pool.kind=local", "--set", "caption.max_new_tokens=4"]
    code, out, _ = say("run", str(recipe), *small)
    assert code == 0
    first_words = [line.split()[0] for line in out.splitlines() if line.strip()]
    stages = ["index", "caption", "score", "select", "dedup", "publish", "train"]
    assert first_words[:8] == [*stages, "The"]
    assert "train     skipped: train.human is null; set it to shards of human pairs" in out
    assert first_words[-1] == "dataset"
    assert "captions rejected (noise)" in out
    assert say("run", str(recipe), *small)[:2] == (0, out)


@pytest.mark.slow
def test_ctrl_c_ends_the_run_with_75_and_it_goes_on_later(say, fresh, tmp_path):
    program = "from capfilt.cli import main; main()"
    with subprocess.Popen(
        python(program, "run", fresh), env=environment(), stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        first = running.stderr.readline()
        running.send_signal(signal.SIGINT)
        last = running.stderr.read().splitlines()[-1]
    assert "index shard 0: 12 rows, 8 kept" in first
    assert running.returncode == 75
    assert last == "capfilt: stopped on request; the same command goes on from here"
    assert say("index", fresh)[0] == 0


def test_a_run_stopped_by_the_guard_shows_the_rounds_it_is_about(say, small_run, tmp_path):
    run = small_run.copied_to(tmp_path / "run")
    guard = {"min_captions": 1, "max_commonest_caption_share": 0.0}
    recipe = write_recipe(
        tmp_path / "recipe.yaml", run, train=training(run.web), guard=guard, pool={"kind": "local"}
    )
    code, out, err = say("run", recipe)
    assert code == 1
    assert "round 0 is not trained on" in err
    assert "captions rejected (noise)" in out
