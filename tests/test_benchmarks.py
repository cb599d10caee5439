"""The benchmark suite: what it accepts, what it computes, what it shows, and one tiny case from end to end."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import bars, cases, functions, measure, peers, table
from benchmarks.bars import Bar, Judged
from benchmarks.child import CaseFailed, measure_in_child
from benchmarks.measure import Settings, WrongResult
from benchmarks.peers import Loop
from benchmarks.results import CaseResult, Metg, Timing, curve_of, how_many, metg


def case_result(
    case: str = "range_square", n_jobs: int = 2, n_tasks: int = 1000, **seconds: Sequence[float]
) -> CaseResult:
    timings = (Timing(peer.replace("Pool", "mp.Pool"), tuple(taken)) for peer, taken in seconds.items())
    return CaseResult(case, n_tasks, n_jobs, tuple(timings))


def silent(_: str) -> None:
    pass


# Arguments


def test_defaults() -> None:
    options = command.parse([])
    assert (options.repeats, options.jobs, options.quick, options.plots) == (5, 2, False, None)
    assert command.parse(["--quick"]).repeats == 3
    assert command.parse(["--quick", "--repeats", "7"]).repeats == 7


@pytest.mark.parametrize(
    "arguments",
    [["--case", "nothing"], ["--peers", "nobody"], ["--repeats", "0"], ["--jobs", "0"], ["--repeats", "x"]],
    ids=" ".join,
)
def test_bad_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.parse(arguments)
    assert ended.value.code == 2


def test_plots_without_matplotlib_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command.parse(["--plots"])
    assert "fastpool[bench]" in capsys.readouterr().err


def test_plots_go_to_a_folder_that_git_ignores_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: object())
    folder = command.parse(["--plots"]).plots
    root = Path(command.__file__).parent.parent
    assert f"/{folder.relative_to(root)}/" in (root / ".gitignore").read_text().splitlines()
    assert command.parse(["--plots", "elsewhere"]).plots == Path("elsewhere")


@pytest.mark.parametrize("option", ["--json", "--plots"])
def test_what_cannot_be_written_is_refused_before_anything_is_measured(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: object())
    monkeypatch.setattr(command, "run_cases", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "file").write_text("kept")
    wrong = {"--json": [tmp_path, tmp_path / "file" / "x"], "--plots": [tmp_path / "file", tmp_path / "file" / "x"]}
    for path in wrong[option]:
        assert command.main([option, str(path)]) == 2
        assert f"error: {option} {path}: " in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "kept"


def test_looking_whether_it_can_be_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command.util, "find_spec", lambda name: object())
    (tmp_path / "old.json").write_text("kept")
    for name in ("new.json", "old.json"):
        options = command.parse(["--json", str(tmp_path / name), "--plots", str(tmp_path / "plots")])
        assert command.unwritable(options) is None
    assert (tmp_path / "old.json").read_text() == "kept"
    assert not (tmp_path / "new.json").exists()
    assert list((tmp_path / "plots").iterdir()) == []


@pytest.mark.parametrize("record", [None, "missing.json", "wrong.json", "other.json"])
def test_plots_of_no_record(record: str | None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install fastpool[bench]")
    (tmp_path / "wrong.json").write_text("{")
    (tmp_path / "other.json").write_text("[]")
    given = [] if record is None else [str(tmp_path / record), str(tmp_path / "new")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.plots", *given], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: python -m benchmarks.plots")
    assert record is None or str(tmp_path / record) in done.stderr


def test_list_names_every_case_and_peer(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    named = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert named == {*cases.BY_NAME, *peers.BY_NAME}


def test_participants_are_those_asked_for_in_the_order_of_the_suite(capsys: pytest.CaptureFixture[str]) -> None:
    found = command.participants(["fastpool", "loop", "futures"], quick=False)
    assert [peer.name for peer in found] == ["loop", "futures", "fastpool"]
    assert capsys.readouterr().out == ""


def test_who_is_not_installed_or_too_slow_for_quick_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers.Mpire, "package", "no_such_package")
    monkeypatch.setattr(peers.Ray, "package", None)
    found = command.participants(None, quick=True)
    printed = capsys.readouterr().out
    assert not {peers.Mpire, peers.Ray} & set(found)
    assert "mpire is skipped: no_such_package is not installed" in printed
    assert "ray is skipped: it takes seconds to start" in printed
    assert peers.Ray in command.participants(["ray"], quick=True)


# Statistics


def test_statistics() -> None:
    result = case_result(loop=[4.0, 8.0, 6.0], fastpool=[3.0, 1.0, 2.0])
    timing = result.timing("loop")
    assert timing is not None
    assert (timing.median, timing.low, timing.high) == (6.0, 4.0, 8.0)
    assert result.ratio("loop", "fastpool") == 3.0
    assert result.efficiency("fastpool") == 1.5
    assert result.ratio("loop", "mpire") is None
    assert result.efficiency("mpire") is None
    assert result.task_seconds == 0.006


def test_how_many_runs() -> None:
    assert how_many([Timing("a", (1.0, 2.0)), Timing("b", (1.0, 2.0))]) == "2 runs"
    assert how_many([Timing("a", (1.0,)), Timing("b", (1.0, 2.0, 3.0))]) == "1 to 3 runs"


def test_json_and_back() -> None:
    result = case_result(loop=[4.0, 8.0], fastpool=[2.0])
    record = json.loads(json.dumps(result.to_json()))
    assert CaseResult.from_json(record) == result
    assert record["peers"]["fastpool"] == {
        "seconds": [2.0],
        "median": 2.0,
        "min": 2.0,
        "max": 2.0,
        "loop_over_peer": 3.0,
        "peer_over_fastpool": 1.0,
    }


# METG


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([], None),
        ([(1.0, 0.1), (10.0, 0.4)], Metg(10.0, ">")),
        ([(1.0, 0.6), (10.0, 0.9)], Metg(1.0, "<")),
        ([(1.0, 0.5), (10.0, 0.9)], Metg(1.0, "<")),
        ([(1.0, 0.25), (100.0, 0.75)], Metg(10.0)),
        ([(1.0, 0.4), (10.0, 0.5), (100.0, 0.9)], Metg(10.0)),
        ([(1.0, 0.2), (4.0, 0.6), (16.0, 0.3), (64.0, 0.9)], Metg(4 ** (0.3 / 0.4))),  # of two the shorter
    ],
)
def test_metg(curve: list[tuple[float, float]], expected: Metg | None) -> None:
    found = metg(curve)
    if found is None or expected is None:
        assert found is expected
    else:
        assert found.bound == expected.bound
        assert math.isclose(found.seconds, expected.seconds)


def test_a_curve_is_sorted_and_leaves_out_what_was_not_measured() -> None:
    points = [
        case_result(n_tasks=10, loop=[20.0], fastpool=[10.0]),
        case_result(n_tasks=10, loop=[5.0], fastpool=[5.0]),
        case_result(n_tasks=10, loop=[1.0]),
    ]
    assert curve_of(points, "fastpool") == [(0.5, 0.5), (2.0, 1.0)]


# Turns


def test_slow_peers_get_fewer_turns_but_at_least_two(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock)
    seconds = {"loop": 50.0, "futures": 4.0, "joblib": 100.0}  # the loop is what the others are measured against
    taken: list[str] = []
    suite = [peers.BY_NAME[name] for name in seconds]
    for peer in measure.turns("case", suite, Settings(repeats=5), silent):
        taken.append(peer.name)
        clock += seconds[peer.name]
    assert taken[:6] == ["loop", "futures", "joblib"] * 2
    assert {name: taken.count(name) for name in seconds} == {"loop": 5, "futures": 3, "joblib": 2}


# Results that are wrong


class Broken(Loop):
    """A loop with a fault: what it returns is what `fault` makes of it."""

    name = "broken"

    @staticmethod
    def fault(results: Any) -> Any:
        raise NotImplementedError

    def map(self, function: functions.Function, items: Sequence[Any]) -> list[Any]:
        results: list[Any] = self.fault(super().map(function, items))
        return results

    def map_array(self, function: functions.Function, array: peers.Array, n_pieces: int) -> peers.Array:
        result: peers.Array = self.fault(super().map_array(function, array, n_pieces))
        return result


def swapped(results: Any) -> Any:
    return [results[1], results[0], *results[2:]]


FAULTS = [
    ("range_square", swapped),
    ("range_square", lambda results: results[:-1]),
    ("range_square", tuple),
    ("range_square", lambda results: [float(x) for x in results]),
    ("range_square", lambda results: [np.int64(x) for x in results]),
    ("alternating", lambda results: [False, *results[1:]]),
    ("float_list", lambda results: [np.float64(results[0]), *results[1:]]),
    ("small_dicts", lambda results: [{**x, "even": int(x["even"])} for x in results]),
    ("small_tuples", lambda results: [list(x) for x in results]),
    ("results_1mb", swapped),
    ("results_1mb", lambda results: [x.astype(np.float32) for x in results]),
    ("results_1mb", lambda results: [x.tolist() for x in results]),
    ("sqrt_plain", lambda result: result[:-1]),
    ("sqrt_plain", lambda result: result.astype(np.float32)),
    ("sqrt_plain", lambda result: result.reshape(1, -1)),
    ("sqrt_first", lambda result: list(result)),
    ("start_stop", swapped),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_a_wrong_result_is_refused_before_anything_is_timed(
    name: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.BY_NAME[name]
    assert isinstance(case, cases.Case)
    small = replace(case, n_tasks=8)
    monkeypatch.setattr(Broken, "fault", staticmethod(lambda results: results))
    [fine] = measure.measure(small, [Broken], Settings(repeats=1), silent)
    assert [len(timing.seconds) for timing in fine.timings] == [1]

    monkeypatch.setattr(Broken, "fault", staticmethod(fault))
    monkeypatch.setattr(measure, "timed", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(WrongResult, match=f"{name}: the results of broken"):
        measure.measure(small, [Broken], Settings(repeats=1), silent)


def test_a_result_that_is_wrong_only_when_timed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []

    def second_is_wrong(results: Any) -> Any:
        calls.append(None)
        return swapped(results) if len(calls) == 2 else results

    monkeypatch.setattr(Broken, "fault", staticmethod(second_is_wrong))
    monkeypatch.setattr(measure, "warm_up", lambda *_: None)
    with pytest.raises(WrongResult):
        measure.measure(cases.CASES[1], [Broken], Settings(repeats=1, quick=True), silent)


def test_all_peers_warm_up_for_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)

    def call_of(seconds: float) -> Any:
        def call() -> None:
            nonlocal now
            now += seconds
            calls.append(seconds)

        return call

    for seconds, times in ((0.1, 3), (0.04, 8), (2.0, 1)):
        calls: list[float] = []
        measure.warm_up(call_of(seconds), 0.3)
        assert len(calls) == times


# The sweep


SMALL = replace(cases.METG, lengths=(1e-6, 4e-6), seconds=0.0004)


def test_a_sweep_measures_every_length_and_takes_the_loop_in() -> None:
    points = measure.measure(SMALL, [peers.MultiprocessingPool], Settings(n_jobs=1, repeats=2), silent)
    assert [point.n_tasks for point in points] == [400, 100]
    longest = points[-1]
    assert [(timing.peer, len(timing.seconds)) for timing in longest.timings] == [("loop", 2), ("mp.Pool", 2)]


def test_a_hopeless_peer_gets_no_shorter_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "HOPELESS", math.inf)
    short, long = measure.measure(SMALL, [Loop, peers.Futures], Settings(n_jobs=1, repeats=1), silent)
    assert long.timing("futures") is not None
    assert short.timing("futures") is None


def test_tasks_of_a_length_can_be_sent_and_are_the_longer_the_more_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(functions, "seconds_per_turn", lambda: (1e-7, 1e-8))
    made = list(functions.busy_for(5e-8, 9e-8, 1e-6))
    assert made[0] is functions.shortest
    assert [function.args for function in made[1:]] == [(0,), (90,)]  # type: ignore[attr-defined]
    assert [pickle.loads(pickle.dumps(function))(6) for function in made] == [function(6) for function in made]


# The peers


def twice(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array * 2


@pytest.mark.parametrize("name", ["loop", "mp.Pool", "futures", "fastpool"])
def test_peers_agree(name: str) -> None:
    peer = peers.BY_NAME[name]
    array = np.arange(50.0)
    running = peer(2)
    with running:
        assert running.map(functions.square, range(20)) == [x * x for x in range(20)]
        assert np.array_equal(running.map_array(twice, array, 19), array * 2)
        for way in ("apply", "apply_async"):
            if peer.offers(way):
                assert getattr(running, way)(functions.square, range(20)) == [x * x for x in range(20)]
    if peer.offers("short_lived"):
        assert running.short_lived(functions.square, range(5)) == [0, 1, 4, 9, 16]
    assert running.once(functions.square, range(3)) == [0, 1, 4]


# Bars


def test_bars_are_met_or_missed() -> None:
    low, high = bars.at_most("range_square", 0.8), bars.faster("range_square", 3)
    share = Bar("range_square", "loop", "fastpool", 0.85, per_worker=True)
    good = case_result(loop=[2.0], Pool=[4.0], fastpool=[1.0])
    bad = case_result(loop=[1.0], Pool=[2.0], fastpool=[1.0])
    assert [(one.value, one.met) for one in bars.judge([good], [low, high, share])] == [
        (0.5, True),
        (4, True),
        (1, True),
    ]
    assert [(one.value, one.met) for one in bars.judge([bad], [low, high, share])] == [
        (1, False),
        (2, False),
        (0.5, False),
    ]
    assert bars.judge([good], [low])[0].to_json() == {
        "case": "range_square",
        "figure": "fastpool / loop",
        "value": 0.5,
        "bar": "<= 0.8",
        "met": True,
    }


def test_a_bar_whose_peers_were_not_measured_is_left_out() -> None:
    assert bars.judge([case_result(loop=[1.0])]) == []
    assert bars.judge([case_result("busy_1us", Pool=[1.0], fastpool=[1.0])]) == []


def test_bars_name_cases_and_peers_that_exist() -> None:
    for bar in bars.BARS:
        assert bar.case in cases.BY_NAME
        case = cases.BY_NAME[bar.case]
        variants = {one.name for one in case.variants} if isinstance(case, cases.Case) else set()
        assert {bar.over, bar.under} <= set(peers.BY_NAME) | variants


def test_variants_take_part_where_fastpool_does() -> None:
    case = cases.BY_NAME["watched_1us"]
    assert isinstance(case, cases.Case)
    assert measure.variants_of(case, [Loop]) == []
    assert peers.FastpoolInsights in measure.variants_of(case, [Loop, peers.Fastpool])


def test_who_has_no_way_to_run_a_case_takes_no_part() -> None:
    assert peers.Fastpool.offers("short_lived")
    assert not peers.Futures.offers("short_lived")
    assert not peers.Joblib.offers("apply")


# What is shown


SPANS = [1e-7, 9.999e-4, 123.456789, 98765.4321]


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_tables_fit_100_columns(case: cases.Case) -> None:
    timings = tuple(Timing(name, (low, high)) for name in peers.BY_NAME for low, high in [(SPANS[0], SPANS[3])])
    few = (replace(timings[0], seconds=(1.0,)), *timings[1:])
    result = CaseResult(case.name, case.n_tasks, 128, few)
    text = table.render(case, [result])
    assert widest(text) <= table.COLUMNS
    assert all(name in text for name in peers.BY_NAME)


def test_the_sweep_s_table_fits_100_columns() -> None:
    for length in (1.04e-8, 1.04e-6, 1234e-6):
        timings = tuple(Timing(name, (100 * length / 3**i,)) for i, name in enumerate(peers.BY_NAME))
        points = [CaseResult("metg", 100, 2, tuple(timings)) for _ in cases.METG.lengths]
        assert widest(table.render(cases.METG, points)) <= table.COLUMNS


def test_bars_and_environment_fit_100_columns() -> None:
    judged = [Judged(bar, value) for bar in bars.BARS for value in SPANS]
    assert widest(table.render_bars(judged, quick=True)) <= table.COLUMNS
    context = {
        "model": "A processor with a name that is as long as such names are, 2.40GHz",
        "cpus_usable": 128,
        "cpu_count": 256,
        "memory": 2**40,
        "system": "Linux 6.1.0-with-a-long-name-of-its-own",
        "python": "3.13.11",
        "numpy": "2.4.10",
        "peers": dict.fromkeys(peers.BY_NAME, "10.20.30rc1"),
    }
    assert widest(table.render_environment(context, 128)) <= table.COLUMNS


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0.00000"),
        (0.00123, "0.00123"),
        (0.5, "0.500"),
        (1.0, "1.00"),
        (12.34, "12.3"),
        (123.4, "123"),
        (98765.4, "98,765"),
    ],
)
def test_figures(value: float, shown: str) -> None:
    assert table.figure(value) == shown


def test_a_table_says_who_ran_less_often_and_what_the_loop_is() -> None:
    case = cases.BY_NAME["sqrt_plain"]
    text = table.render(case, [case_result("sqrt_plain", loop=[2.0, 2.0], Pool=[3.0], fastpool=[1.0, 1.0])])
    assert "fewer runs than 2, being slow: mp.Pool" in text
    assert f"loop: {cases.NUMPY}" in text
    assert "2.00x" in text


# From end to end


def test_one_case_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "new" / "figures.json"
    arguments = [
        "--quick",
        "--case",
        "start_stop",
        "--peers",
        "loop",
        "fastpool",
        "--repeats",
        "2",
        "--json",
        str(file),
    ]
    assert command.main(arguments) == 0
    record = json.loads(file.read_text())
    assert set(record) == {"environment", "quick", "repeats", "results", "bars"}
    assert record["environment"]["peers"]["fastpool"] == peers.Fastpool.version()
    [result] = record["results"]["start_stop"]
    assert {name: len(found["seconds"]) for name, found in result["peers"].items()} == {"loop": 2, "fastpool": 2}
    assert "start_stop: a new pool" in capsys.readouterr().out


def test_peers_that_leave_things_behind_agree_in_a_process_of_their_own() -> None:
    """Whichever of them are installed: a wrong result would be an error."""
    installed = [peer for peer in (peers.Joblib, peers.Mpire) if peer.missing() is None]
    [result] = measure_in_child("sqrt_fine", [Loop, *installed], Settings(repeats=1, quick=True))
    assert [timing.peer for timing in result.timings] == ["loop", *(peer.name for peer in installed)]


def test_a_case_whose_process_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaseFailed, match="no_such_case"):
        measure_in_child("no_such_case", [Loop], Settings(repeats=1))
    assert "KeyError" in capfd.readouterr().err

    def fail(case: str, *_: object) -> list[CaseResult]:
        raise CaseFailed(f"{case}: it failed")

    monkeypatch.setattr(command, "measure_in_child", fail)
    assert command.main(["--case", "start_stop", "--peers", "loop"]) == 1
    assert "start_stop: it failed" in capfd.readouterr().err


def test_plots_are_drawn(tmp_path: Path) -> None:
    """In a process of its own: matplotlib keeps font files open."""
    pytest.importorskip("matplotlib", reason="plots need matplotlib: pip install fastpool[bench]")
    seconds = {"loop": [2.0, 2.1], "Pool": [3.0, 5.0], "fastpool": [1.0, 1.2]}
    points = [case_result("metg", n_tasks=n, **seconds) for n in (1000, 10)]
    results = {
        "range_square": [case_result(**seconds)],
        "start_stop": [case_result("start_stop", **seconds)],
        "float_list": [case_result("float_list", fastpool=[1.0])],
        "metg": points,
    }
    record = tmp_path / "figures.json"
    record.write_text(
        json.dumps({"results": {name: [one.to_json() for one in found] for name, found in results.items()}})
    )
    draw = [sys.executable, "-m", "benchmarks.plots", str(record), str(tmp_path / "new")]
    drawn = [
        Path(line) for line in subprocess.run(draw, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    ]
    assert drawn == [tmp_path / "new" / f"{name}.png" for name in results]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
