"""The queue: jobs in the order of their arrival, drawn by one thread, those of one shape together."""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from latent_diffusion.server.drawing.job import Job
from latent_diffusion.server.limits import MAX_KEPT
from latent_diffusion.server.refusals import Refusal, refusal_of

__all__ = ["Queue"]

LOG = logging.getLogger("latent_diffusion.server")

MAX_TOGETHER = 32  # jobs in one batch
GATHERED = 0.03  # seconds at most in which a batch waits for requests that are being checked
MAX_FINISHED = 1000  # jobs that can still be asked for


class Queue:
    """Jobs that wait, the one at work, and those that are finished."""

    def __init__(self, draw: Callable[[Sequence[Job]], None], most: int) -> None:
        """Draw with `draw`, which moves the jobs on and may raise; refuse more than `most` waiting jobs."""
        self._draw = draw
        self._most = most
        self._waiting: deque[Job] = deque()
        self._jobs: dict[str, Job] = {}  # in the order of their arrival
        self._ready = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._coming = 0
        self.current: Sequence[Job] = ()

    def start(self) -> None:
        """Start the worker."""
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="drawing", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop after the step that is being drawn; nothing that waits is begun."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()
        for job in (*self.current, *self._waiting):
            self.cancel(job)
        if self._thread is not None:
            self._thread.join(timeout=60)

    @contextlib.contextmanager
    def coming(self) -> Iterator[None]:
        """Announce a request while it is checked, so that those that arrive together are drawn together."""
        with self._ready:
            self._coming += 1
        try:
            yield
        finally:
            with self._ready:
                self._coming -= 1
                self._ready.notify_all()

    def submit(self, job: Job) -> None:
        """Append a job.

        Raises:
            Refusal: the queue is full.
        """
        with self._ready:
            if len(self._waiting) >= self._most or self._closed:
                raise Refusal(429, f"the queue is full: {len(self._waiting)} requests wait; try later", retry_after="5")
            self._waiting.append(job)
            self._jobs[job.id] = job
            self._forget()
            self._ready.notify()

    def find(self, key: str) -> Job:
        """Return the job of an id.

        Raises:
            Refusal: there is none.
        """
        job = self._jobs.get(key)
        if job is None:
            raise Refusal(404, f"no job {key!r:.40}; finished jobs are kept only for a while")
        return job

    def newest(self, count: int) -> list[Job]:
        """Return up to `count` jobs, the newest first."""
        with self._ready:
            return list(reversed(self._jobs.values()))[:count]

    def place(self, job: Job) -> int:
        """Return how many jobs are before it; 0 where it is at work or finished."""
        with self._ready:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    @property
    def length(self) -> int:
        """Number of jobs that wait or are at work."""
        return len(self._waiting) + len(self.current)

    def cancel(self, job: Job) -> None:
        """Drop a job; what is being drawn ends within a step."""
        with self._ready:
            if job in self._waiting:
                self._waiting.remove(job)
            if not job.finished:
                job.change(status="cancelled", latest=None)

    def _take(self) -> list[Job]:
        """Return the next job and those that wait behind it and can be drawn with it."""
        first = self._waiting.popleft()
        batch = [first]
        if first.request.shape is not None:
            same = [job for job in self._waiting if job.request.shape == first.request.shape]
            for job in same[: MAX_TOGETHER - 1]:
                self._waiting.remove(job)
                batch.append(job)
        return batch

    def _gathered(self) -> bool:
        """Whether no request is on its way that may be drawn with the next one."""
        alone = not self._waiting or self._waiting[0].request.shape is None
        return alone or self._closed or not self._coming or len(self._waiting) >= MAX_TOGETHER

    def _work(self) -> None:
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._closed)
                self._ready.wait_for(self._gathered, GATHERED)
                if self._closed:
                    return
                if not self._waiting:  # dropped meanwhile
                    continue
                self.current = self._take()
            self._finish(self.current)
            self.current = ()

    def _finish(self, jobs: Sequence[Job]) -> None:
        """Draw a batch; a fault of one request is found by drawing the others without it."""
        try:
            self._draw(jobs)
        except Exception as error:
            if len(jobs) == 1:
                self._fail(jobs[0], error)
                return
            for job in jobs:
                if not job.finished:
                    self._finish([job])

    def _fail(self, job: Job, error: Exception) -> None:
        failure = refusal_of(error)
        if failure.status_code >= 500:
            LOG.error("job %s: %s", job.id, failure.detail, exc_info=error)
        if not job.finished:
            job.change(status="failed", failure=failure, latest=None)

    def _forget(self) -> None:
        """Drop the oldest finished jobs beyond what is kept."""
        finished = [job for job in self._jobs.values() if job.finished]
        size = sum(len(picture.png) for job in finished for picture in job.pictures)
        for job in finished:
            if size <= MAX_KEPT and len(self._jobs) <= MAX_FINISHED:
                return
            size -= sum(len(picture.png) for picture in job.pictures)
            del self._jobs[job.id]
