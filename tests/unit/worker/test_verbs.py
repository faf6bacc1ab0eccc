"""The verbs as they are typed where no worker runs, and which worker is meant."""

import contextlib
import json
from pathlib import Path

import pytest

from protocol.admin import ConsideredView, RateView, WhyView
from protocol.messages import Offer
from protocol.receipts import Receipt, SignedReceipt
from worker.control.messages import Answer
from worker.control.place import bind
from worker.folder import COORDINATORS, WorkerFolder
from worker.measured import FILE as CAPABILITY
from worker.measured import remember
from worker.notes import Delivery, device_path
from worker.remembered import checkpoints_in
from worker.settings import BadSetting
from worker.status import WorkerStatus
from worker.verbs import logs as logs_verb
from worker.verbs.logs import last_lines
from worker.verbs.options import find_worker
from worker.verbs.why import why_lines

ASSIGNMENT = "a" + "0" * 16
WORKER = "12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp"
NOW = 1_700_000_000.0


@pytest.fixture
def root(tmp_path, monkeypatch):
    """The folder of a worker that has worked and does not run."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    folder = WorkerFolder(tmp_path / "anna")
    folder.close()
    return folder.root


def add_work(root: Path, make) -> None:
    """A lease, two checkpoints, two things handed in, and receipts for two assignments."""
    spec = make.spec()
    offer = Offer(
        assignment=ASSIGNMENT,
        fencing=1,
        expires_in=20.0,
        spec=spec,
        shard=make.blob("shard"),
        parent=None,
        resume=None,
        checkpoint_seconds=5.0,
        reason="",
    )
    given_back = Delivery(assignment="a" + "1" * 16, submission=None, blobs=(), at=1.0)
    with contextlib.closing(WorkerFolder(root)) as folder:
        folder.remember_offer(offer)
        folder.remember_deliveries({make.blob("manifest").digest: given_back})
    for step in (7, 12):
        state = root / "work" / ASSIGNMENT / "checkpoints" / f"step-{step:08}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{}")
    (root / "work" / ASSIGNMENT / "checkpoints" / "step-new").mkdir()
    for entry, assignment, credit in ((1, "c", 1e15), (2, "d", 2e15), (3, "d", 2.5e15)):
        receipt = Receipt(
            run="tiny",
            coordinator=WORKER,
            entry=entry,
            entry_digest=make.blob(f"{entry}").digest,
            worker=WORKER,
            assignment="a" + assignment * 16,
            spec=spec.digest,
            manifest=make.blob("manifest").digest,
            num_steps=10,
            credit=credit,
            accepted_at=float(entry),
        )
        path = root / "receipts" / WORKER / f"{entry}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SignedReceipt(receipt=receipt, signature="ab" * 64).model_dump_json())


@pytest.mark.parametrize("verb", ["status", "why", "pause", "resume", "finish", "stop", "logs"])
def test_help_teaches_every_verb(run, verb):
    code, out, _ = run(verb, "--help")
    assert code == 0
    assert "--folder" in out
    assert "--format" in out


@pytest.mark.parametrize(
    "words", [("why",), ("pause",), ("pause", "2h"), ("resume",), ("finish",), ("stop", "--now")]
)
def test_where_no_worker_runs_an_order_fails_and_says_so(run, root, words):
    code, out, err = run(*words, "--folder", root)
    assert (code, out) == (1, "")
    assert err == f"hdee-worker: no hdee-worker runs from {root}\n"


def test_where_no_worker_runs_its_status_is_what_lies_on_disk(run, root, make):
    add_work(root, make)
    code, out, _ = run("status", "--folder", root)
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == f"no hdee-worker runs from {root}"
    assert lines[1].startswith(f"lease     seed for python, FFN 64 [{ASSIGNMENT}]")
    assert [line.split(",")[0] for line in lines[2:4]] == [
        f"saved     step 7 of {ASSIGNMENT}",
        f"saved     step 12 of {ASSIGNMENT}",
    ]
    assert lines[4].startswith("owed      a checkpoint of a1")
    assert lines[5] == "credit    3.5e15 FLOPs for 2 accepted pieces of work"
    code, out, _ = run("status", "--folder", root, "--format", "json")
    told = json.loads(out)
    assert code == 1
    assert (told["running"], told["status"], told["folder"]) == (False, None, str(root))
    assert told["remembered"]["assignment"] == ASSIGNMENT
    assert [one["step"] for one in told["remembered"]["checkpoints"]] == [7, 12]
    assert told["remembered"]["credit"] == 3.5e15


def test_a_worker_that_never_did_anything_has_nothing_to_remember(run, root):
    code, out, _ = run("status", "--folder", root)
    assert (code, out.splitlines()[1:]) == (1, ["lease     none", "credit    none yet"])
    assert checkpoints_in(root) == []


@pytest.mark.parametrize("text", ["2", "soon", "0s", "-5m"])
def test_a_pause_of_no_length_is_refused_in_words(run, root, text):
    code, _, err = run("pause", "--folder", root, "--", text)
    assert code == 2
    assert err.startswith(f"hdee-worker: pause '{text}': expected for how long")


def test_the_folder_of_no_worker_is_named(run, tmp_path):
    code, _, err = run("status", "--folder", tmp_path / "nobody")
    assert code == 2
    assert "no hdee-worker has worked there" in err
    code, _, err = run("stop", "--folder", tmp_path, "--url", "https://host")
    assert code == 2
    assert "--folder and --url" in err


def worked(base: Path, *names: str) -> list[Path]:
    for name in names:
        WorkerFolder(base / name).close()
    return [base / name for name in names]


def test_a_worker_that_is_not_named_is_the_only_one_or_the_only_one_at_work(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    base = tmp_path / "hdee"
    with pytest.raises(BadSetting, match="no hdee-worker has worked in"):
        find_worker(None, None, base=base)
    [one] = worked(base, "one")
    assert find_worker(None, None, base=base) == one
    two, _ = worked(base, "two", "three")
    with pytest.raises(BadSetting, match="of 3 workers none runs") as none:
        find_worker(None, None, base=base)
    assert all(f"\n  {base / name}" in str(none.value) for name in ("one", "two", "three"))
    (two / COORDINATORS).write_text("{}")
    assert find_worker(None, None, base=base) == two, "for the others nobody ever answered"
    (one / COORDINATORS).write_text("{}")
    first, _ = bind(two, runtime=tmp_path / "run")
    assert find_worker(None, None, base=base) == two
    second, _ = bind(one, runtime=tmp_path / "run")
    with pytest.raises(BadSetting, match="2 workers run, say which") as both:
        find_worker(None, None, base=base)
    assert str(base / "three") not in str(both.value)
    first.close()
    second.close()


def test_a_url_names_the_folder_that_join_uses_for_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    [root] = worked(tmp_path / ".local" / "share" / "hdee", "hdee.example.org")
    assert find_worker(None, "https://hdee.example.org") == root
    with pytest.raises(BadSetting, match=r"other\.example\.org"):
        find_worker(None, "https://other.example.org")


def test_logs_prints_the_last_lines(run, root):
    (root / "worker.log").write_text("".join(f"line {number}\n" for number in range(100)))
    (root / "trainer.log").write_text("\x1b[2Jloss\nunfinished")
    assert run("logs", "--folder", root, "-n", 2) == (0, "line 98\nline 99\n", "")
    assert run("logs", "--folder", root)[1].startswith("line 60\n")
    assert run("logs", "--folder", root, "-n", 0)[1] == ""
    shown = run("logs", "--folder", root, "--trainer")[1]
    assert shown == "?[2Jloss\nunfinished\n"
    shown = run("logs", "--folder", root, "-n", 1, "--format", "json")[1]
    assert json.loads(shown) == "line 99"


def test_a_log_that_is_not_there_yet_is_named(run, root):
    code, _, err = run("logs", "--folder", root, "--trainer")
    assert code == 2
    assert "trainer.log: there is no such log yet" in err


def two_trainers(root: Path, make, *names: str) -> None:
    """The logs of the trainers of devices with these names."""
    for number, name in enumerate(names):
        remember(
            device_path(root, CAPABILITY, number), make.capability(), device=name, num_threads=1
        )
        device_path(root, "trainer.log", number).write_text(f"old {name}\nnew {number}\n")


def test_logs_of_several_trainers_bear_the_names_of_their_devices(run, root, make):
    two_trainers(root, make, "cuda:0", "cuda:3")
    shown = run("logs", "--folder", root, "--trainer", "-n", 1)
    assert shown == (0, "cuda:0: new 0\ncuda:3: new 1\n", "")
    shown = run("logs", "--folder", root, "--trainer", "--device", "cuda:3")
    assert shown == (0, "old cuda:3\nnew 1\n", "")
    code, _, err = run("logs", "--folder", root, "--trainer", "--device", "cuda:1")
    assert code == 2
    assert "--device cuda:1: no such device has trained here" in err
    assert "'cuda:0', 'cuda:3'" in err
    code, _, err = run("logs", "--folder", root, "--device", "cuda:3")
    assert code == 2
    assert "add --trainer" in err


def test_devices_of_one_name_are_told_apart_as_on_the_screen(run, root, make):
    two_trainers(root, make, "cpu", "cpu")
    assert run("logs", "--folder", root, "--trainer", "--device", "cpu 2", "-n", 1)[1] == "new 1\n"
    code, _, err = run("logs", "--folder", root, "--trainer", "--device", "cpu")
    assert code == 2
    assert "several are called so; expected one of 'cpu 1', 'cpu 2'" in err


def test_the_only_device_is_known_by_its_kind_and_its_log_needs_no_name(run, root, make):
    remember(root / CAPABILITY, make.capability(), device=None, num_threads=None)
    (root / "trainer.log").write_text("loss\n")
    assert run("logs", "--folder", root, "--trainer") == (0, "loss\n", "")
    assert run("logs", "--folder", root, "--trainer", "--device", "cpu") == (0, "loss\n", "")


def test_following_several_logs_says_whose_each_new_line_is(run, root, make, monkeypatch):
    two_trainers(root, make, "cuda:0", "cuda:3")
    looks: list[None] = []

    def look(_seconds: float) -> None:
        if looks:
            raise KeyboardInterrupt
        looks.append(None)
        for number in (1, 0):
            with device_path(root, "trainer.log", number).open("a") as file:
                file.write("more\nunfinished")

    monkeypatch.setattr(logs_verb.time, "sleep", look)
    code, out, _ = run("logs", "--folder", root, "--trainer", "--follow", "-n", 0)
    assert (code, out) == (0, "cuda:0: more\ncuda:3: more\n")


def test_only_as_much_of_a_log_is_read_as_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(logs_verb, "BLOCK_BYTES", 7)
    path = tmp_path / "worker.log"
    lines = [f"{'x' * (number % 13)}{number}" for number in range(200)]
    path.write_text("\n".join(lines) + "\n")
    for count in (1, 2, 50, 199, 200, 500):
        assert last_lines(path, count) == lines[-count:]
    assert last_lines(tmp_path / "none", 5) == []


def test_following_a_log_shows_what_is_added_also_after_it_was_cut(run, root, monkeypatch):
    path = root / "worker.log"
    path.write_text("old\n")
    looks: list[None] = []

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    writes = [lambda: append("ha"), lambda: append("lf\nnext\n"), lambda: path.write_text("new\n")]

    def look(_seconds: float) -> None:
        if len(looks) == len(writes):
            raise KeyboardInterrupt
        writes[len(looks)]()
        looks.append(None)

    monkeypatch.setattr(logs_verb.time, "sleep", look)
    code, out, _ = run("logs", "--folder", root, "--follow")
    assert (code, out) == (0, "old\nhalf\nnext\nnew\n")


def account(**changes: object) -> WhyView:
    values = {
        "worker": WORKER,
        "name": "anna",
        "state": "idle",
        "age_seconds": 1.0,
        "holds": None,
        "uncollected": 0,
        "blockers": (),
        "answer": "no assignment is open now",
        "expected_flops_per_second": 1e9,
        "waited_seconds": None,
        "patience_seconds": 30.0,
        "rate": RateView(calls_left=3, calls_a_second=1.0, retry_after_seconds=0.0),
        "considered": (),
        "next_after": None,
        **changes,
    }
    return WhyView.model_validate(values)


def test_why_names_the_requirement_that_fails_and_by_how_much():
    considered = ConsideredView(
        assignment=ASSIGNMENT,
        description="640-wide python expert",
        fits=False,
        given=False,
        words="needs 9.10 GB free memory, you have 7.60 GB",
        requirement="memory",
    )
    status = WorkerStatus(state="waiting", reason="needs 9.10 GB", asks_at=NOW + 8)
    view = account(considered=(considered,), next_after=ASSIGNMENT, waited_seconds=5.0)
    lines = why_lines(Answer(status=status, pid=1, account=view), NOW)
    assert lines[0] == "Nothing is trained: needs 9.10 GB. It is asked again in 0:08."
    assert "The coordinator would say now: no assignment is open now." in lines
    assert f"  lacks 640-wide python expert: {considered.words} [{ASSIGNMENT}]" in lines
    assert lines[-1] == "  ... and more"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"state": "paused", "reason": "on battery"}, "Nothing is trained: on battery."),
        ({"state": "away", "reason": "no route"}, "The coordinator does not answer: no route."),
        (
            {"state": "training", "assignment": ASSIGNMENT, "work": "an expert", "reason": "fast"},
            f"an expert [{ASSIGNMENT}]: fast.",
        ),
        ({"state": "joining"}, "Nothing is trained: the worker is joining."),
    ],
)
def test_why_begins_with_this_machines_own_reason(status, words):
    answer = Answer(status=WorkerStatus(**status), pid=1, why_not="it is away")
    lines = why_lines(answer, NOW)
    assert lines[0].startswith(words)
    assert lines[1] == "What the coordinator thinks is not known: it is away"


def test_why_names_what_this_machine_does_not_tell():
    status = WorkerStatus(missing_senses=("X11 (DISPLAY is not set)", "battery (none is seen)"))
    lines = why_lines(Answer(status=status, pid=1, why_not="it is away"), NOW)
    assert lines[1] == (
        "Not known on this machine: X11 (DISPLAY is not set); battery (none is seen)."
    )


def test_why_says_what_keeps_a_worker_from_all_work():
    view = account(blockers=("the operator paused the run",))
    lines = why_lines(Answer(status=WorkerStatus(), pid=1, account=view), NOW)
    assert lines[1:] == ["The coordinator gives it nothing now: the operator paused the run."]
