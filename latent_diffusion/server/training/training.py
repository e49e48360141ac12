"""What the routes of training do: examine data, start, resume and end a run, and hand over its result."""

import shutil
import tempfile
from pathlib import Path
from typing import Any

from latent_diffusion.checkpoint.files.atomic import replacing
from latent_diffusion.server.drawing.service import Service
from latent_diffusion.server.refusals import Refusal
from latent_diffusion.server.train_folder import TrainFolder
from latent_diffusion.server.training.process import Process
from latent_diffusion.server.training.recipe import TrainFields, configuration, written
from latent_diffusion.server.training.run_view import Runs, last_error, tail

__all__ = ["WITHOUT", "Training"]

TRAIN = ("accelerate.commands.launch", "-m", "latent_diffusion.train")
WITHOUT = "start the server with --train-folder FOLDER to train; its folders of pictures can then be chosen"


class Training:
    """The folder, the process, the runs and the files of the last examination."""

    def __init__(self, service: Service, *, on_cpu: bool) -> None:
        """Take the server's model and settings; `on_cpu`: train without a GPU."""
        self.service, self._on_cpu = service, on_cpu
        root = service.settings.train_folder
        self.there = root is not None
        if root is not None:
            self._folder = TrainFolder(root)
            self.process = Process(self._folder)
            self._runs = Runs(self._folder, self.process)
            self.checks = Path(tempfile.mkdtemp(prefix="latent-diffusion-check-"))

    @property
    def folder(self) -> TrainFolder:
        """The folder.

        Raises:
            Refusal: the server was started without one.
        """
        if not self.there:
            raise Refusal(404, WITHOUT)
        return self._folder

    @property
    def runs(self) -> Runs:
        """The runs of the folder; errors as for `folder`."""
        if not self.there:
            raise Refusal(404, WITHOUT)
        return self._runs

    def examine(self, fields: TrainFields) -> None:
        """Start `doctor` on what a run would be trained on."""
        run = configuration(self.service, self.folder, fields, self.folder.runs / fields.name)
        config, report, output = files = [self.checks / name for name in ("check.yaml", "report.html", "output.log")]
        command = ("latent_diffusion", "doctor", str(config), "--report", str(report))
        self.process.start("", command, output, config, written(run, "check"), old=files)

    def check(self) -> dict[str, Any]:
        """Return the state of the last examination, its lines, and the error that ended it."""
        if not self.there or not (self.checks / "output.log").exists():
            return {"state": "none", "lines": [], "error": None, "report": False}
        lines = tail(self.checks / "output.log")[1:]
        running = self.process.alive and self.process.name == ""
        error = last_error(lines)
        shown = [line for line in lines if not line.startswith(("error: ", "wrote "))]
        report = not running and (self.checks / "report.html").is_file()
        return {"state": "running" if running else "done", "lines": shown, "error": error, "report": report}

    def begin(self, fields: TrainFields) -> None:
        """Write the configuration of a run and start its process."""
        folder = self.folder
        for model in (fields.name, f"runs/{fields.name}"):
            if model in self.service.shelf.models() or fields.name in self.service.shelf.loras():
                raise Refusal(409, f"a model or LoRA is named {fields.name!r} already; choose another name", "name")
        run = configuration(self.service, folder, fields, folder.runs / fields.name)
        self._launch(fields.name, written(run, fields.name))

    def resume(self, name: str) -> None:
        """Start the process of a run again: it continues from its newest checkpoint."""
        if self.runs.view(name)["state"] == "finished":
            raise Refusal(409, f"the run {name!r} is finished; there is nothing to resume")
        self._launch(name, None)

    def _launch(self, name: str, text: str | None) -> None:
        runs = self.folder.runs
        config = runs / f"{name}.yaml"
        launcher, *rest = TRAIN
        command = (launcher, *(["--cpu"] if self._on_cpu else []), *rest, str(config))
        self.process.start(name, command, runs / f"{name}.log", config, text)

    def use(self, name: str) -> dict[str, str | None]:
        """Return the model and the LoRA to draw with, the LoRA copied to where prompts find it."""
        view, shelf = self.runs.view(name), self.service.shelf
        if view["result"] is None:
            raise Refusal(409, f"the run {name!r} has no result yet; it is {view['state']}")
        if view["result"] == "model":
            return {"model": f"runs/{name}", "lora": None}
        target = self.service.settings.lora_folder
        assert target is not None, "a server that trains has one"
        source, copy = self.runs.file(name, "model", f"{name}.safetensors"), target / f"{name}.safetensors"
        if copy.exists() and copy.read_bytes() != source.read_bytes():
            raise Refusal(409, f"the LoRA folder has another {copy.name}; rename it, nothing is overwritten")
        if not copy.exists():
            with replacing(copy) as temporary:
                shutil.copyfile(source, temporary)
        init = str(self.runs.configuration(name).objective.get("init"))
        base = next((key for key, place in shelf.models().items() if init in (place, str(Path(place).resolve()))), None)
        return {"model": base, "lora": name}

    def close(self) -> None:
        """Stop the training, which saves, and drop the examination."""
        if self.there:
            self.process.close()
            shutil.rmtree(self.checks, ignore_errors=True)
