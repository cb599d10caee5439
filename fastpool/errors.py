"""What can go wrong, as types with fields.

Each error of fastpool's own is a :class:`FastpoolError` and the builtin that users catch for that kind of thing.
"""

from __future__ import annotations

import pickle
import signal


class FastpoolError(Exception):
    """Root of fastpool's own errors."""


class WorkerDiedError(FastpoolError, RuntimeError):
    """A worker process ended without having been asked to.

    Attributes
    ----------
    worker_id : int
    pid : int
    exitcode : int or None
        As in ``multiprocessing``: the exit status, or minus the signal's number; None if somebody else reaped it.
    state : str
        What the worker was doing: ``starting``, ``idle``, ``initializing``, ``running``, ``exiting``.
    tasks : range
        Numbers (positions in the input) of the tasks it held that have no result.
    start_method : str
    tries : int
        How many workers have died of this: at the first of the tasks, or before they got to any.
    """

    def __init__(
        self,
        worker_id: int,
        pid: int,
        exitcode: int | None,
        state: str,
        tasks: range,
        start_method: str = "fork",
        tries: int = 1,
    ) -> None:
        super().__init__(worker_id, pid, exitcode, state, tasks, start_method, tries)
        self.worker_id = worker_id
        self.pid = pid
        self.exitcode = exitcode
        self.state = state
        self.tasks = tasks
        self.start_method = start_method
        self.tries = tries

    def __str__(self) -> str:
        others = "" if self.tries == 1 else f" It was the {ordinal(self.tries)} to end like this."
        return (
            f"worker {self.worker_id} (pid {self.pid}) {describe_end(self.exitcode)} while {self.state}; "
            f"{describe_tasks(self.tasks)}.{others}{likely_cause(self.exitcode, self.state, self.start_method)}"
        )


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, …"""
    teens = number % 100 in (11, 12, 13)
    return str(number) + ("th" if teens else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))


def describe_end(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None:
        return "ended, with a status that somebody else collected,"
    if exitcode >= 0:
        return f"exited with status {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}"


def describe_tasks(tasks: range) -> str:
    """The tasks of a dead worker, in words."""
    if not tasks:
        return "it held no task"
    if len(tasks) == 1:
        return f"it held task {tasks[0]}"
    return f"it held tasks {tasks[0]} to {tasks[-1]}, of which at most the first was begun"


def likely_cause(exitcode: int | None, state: str, start_method: str) -> str:
    """What usually makes a process end like that, and what to do."""
    if state == "starting" and start_method != "fork":
        return (
            " It never came up: look at what it printed. A worker imports the main program first, whose own work must "
            'stand behind `if __name__ == "__main__":`.'
        )
    if state == "starting":
        return " It never came up: look at what it printed, and whether threads of the parent held locks at the fork."
    if exitcode == -signal.SIGKILL:
        return " SIGKILL usually means that memory ran out: use fewer workers or smaller chunks."
    if exitcode in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL):
        return " A C extension crashed: run the task in the parent under `python -X faulthandler`."
    if exitcode is not None and exitcode >= 0:
        return " Something in it called os._exit or ended the interpreter."
    return ""


class WorkerTimeoutError(FastpoolError, TimeoutError):
    """A task, `worker_init` or `worker_exit` ran for longer than its limit, and the worker that it ran in was ended.

    A process was killed; a thread was interrupted, or, where it did not run Python code, abandoned.

    Attributes
    ----------
    worker_id : int
    pid : int
    phase : str
        ``"task"``, ``"worker_init"``, ``"worker_exit"``.
    function : str
        Its name.
    limit : float
        What `task_timeout`, `worker_init_timeout` or `worker_exit_timeout` was: seconds.
    task : int or None
        Number (position in the input) of the task.
    """

    def __init__(self, worker_id: int, pid: int, phase: str, function: str, limit: float, task: int | None) -> None:
        super().__init__(worker_id, pid, phase, function, limit, task)  # OSError takes two to five for its own
        self.worker_id = worker_id
        self.pid = pid
        self.phase = phase
        self.function = function
        self.limit = limit
        self.task = task

    def __str__(self) -> str:
        what = self.phase if self.task is None else f"task {self.task}"
        return (
            f"{what} ({self.function}) ran for longer than {self.phase}_timeout={self.limit} seconds; its worker "
            f"{self.worker_id} (pid {self.pid}) was ended. Either it is stuck (a lock, a connection without a timeout "
            "of its own) or it needs more time: `faulthandler.dump_traceback_later(seconds)` as its first line shows "
            f"where it is, a larger {self.phase}_timeout lets it go on."
        )


class Interruption(BaseException):
    """Raised in the user's code by a worker that is a thread, when its pool ends: the task's result is not wanted.

    Not an error: nobody else ever gets to see it.
    """


class StaleFunctionError(Exception):
    """This process has an older definition of a function that travelled by name.

    Not an error: another worker gets the function, and nobody else ever gets to see it.
    """


class SerializationError(FastpoolError, pickle.PicklingError):
    """A function, argument, result or exception could not be turned into bytes, or back.

    Attributes
    ----------
    what : str
        ``"argument"``, ``"result"``, ``"exception"``, ``"function"``, ``"exit result"``, ``"shared_objects"``.
    task : int or None
        Number of the task.
    worker_id : int or None
        The worker it happened in; None: the parent.
    use_dill : bool
        The pool uses dill.
    """

    use_dill = False

    def __init__(self, what: str, task: int | None, worker_id: int | None, detail: str) -> None:
        super().__init__(what, task, worker_id, detail)
        self.what = what
        self.task = task
        self.worker_id = worker_id
        self.detail = detail

    def __str__(self) -> str:
        of, where = of_task(self.task), place_of(self.worker_id)
        return f"the {self.what}{of} cannot be sent between processes (in {where}): {self.detail}. {self._remedy}"

    @property
    def _remedy(self) -> str:
        if BY_INHERITANCE in self.detail:
            return SHARED_REMEDY
        if self.use_dill:
            return DILL_REMEDY
        return FUNCTION_REMEDY if self.what == "function" else VALUE_REMEDY


def unsendable(
    reason: BaseException, what: str, task: int | None, worker_id: int | None, detail: str
) -> SerializationError | MemoryError:
    """The error that says that a value could not be turned into bytes, or back: where memory ran out, that."""
    if isinstance(reason, MemoryError):
        return MemoryError(f"fastpool: no memory to send the {what}{of_task(task)} (in {place_of(worker_id)})")
    return SerializationError(what, task, worker_id, detail)


def of_task(task: int | None) -> str:
    return "" if task is None else f" of task {task}"


def place_of(worker_id: int | None) -> str:
    return "the parent" if worker_id is None else f"worker {worker_id}"


BY_INHERITANCE = "only be shared between processes through inheritance"  # multiprocessing's own words
SHARED_REMEDY = (
    "Give locks, queues and the like to the workers when they start: make them with pool.ctx and pass them in "
    "WorkerPool(shared_objects=...)."
)
DILL_REMEDY = "Not even dill can send it: leave it out, or make it inside the worker (worker_init)."
VALUE_REMEDY = (
    "Pass objects that pickle can handle (or dill, with use_dill=True), or make them inside the worker (worker_init)."
)
FUNCTION_REMEDY = (
    'Define it at the top level of a module, outside of `if __name__ == "__main__"`, or use WorkerPool(use_dill=True), '
    "which also sends lambdas, closures and functions of a notebook, of a shell, of `python -c` or of stdin."
)


class DamagedMemoryError(FastpoolError, RuntimeError):
    """Shared memory holds what the protocol does not allow: something wrote over it.

    Attributes
    ----------
    what : str
        What was found to be damaged.
    """

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what

    def __str__(self) -> str:
        return (
            f"the pool's shared memory was damaged: {self.what}. "
            "A C extension in a task probably wrote out of bounds; the pool's workers were stopped."
        )


class RemoteError(FastpoolError):
    """Where an exception came from: the ``__cause__`` of what a map raises.

    Attributes
    ----------
    worker_id : int
    phase : str
        ``"task"``, ``"worker_init"``, ``"worker_exit"``, or ``"worker"``: between those, by a signal handler.
    task : int or None
        Number of the task (position in the input).
    arguments : str
        The task's arguments, shortened.
    traceback : str
        The traceback in the worker.
    """

    def __init__(self, worker_id: int, phase: str, task: int | None, arguments: str, traceback: str) -> None:
        super().__init__(worker_id, phase, task, arguments, traceback)
        self.worker_id = worker_id
        self.phase = phase
        self.task = task
        self.arguments = arguments
        self.traceback = traceback

    def __str__(self) -> str:
        of = self.phase
        if of == "worker":
            of = "a signal handler between tasks"
        elif of == "task":
            of = "getting the function" if self.task is None else f"task {self.task}"
        given = f"\narguments: {self.arguments}" if self.arguments else ""
        return f"raised by {of} in worker {self.worker_id}{given}\n\n{self.traceback}"
