"""The training loop: data → step → log, validate, save, evaluate.

A run depends only on its configuration and its data. If it is stopped at any step and resumed, it gives the same losses
and weights as without the stop. So a checkpoint holds all state that the next step depends on. Validation and grids,
which only read the networks, draw no random numbers.

Several ranks may run this loop side by side (distributed.py). Only rank 0 logs, validates and saves, inside
`World.together`. The other ranks wait there, and get its errors.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vologan_fast import stopping
from vologan_fast.config import DOMAINS, Config, ConfigError
from vologan_fast.data import DataError, Dataset, held_out_batches, open_loader
from vologan_fast.evaluation.inputs import Images, held_out_images
from vologan_fast.evaluation.judge import Judge, Row
from vologan_fast.evaluation.views import View
from vologan_fast.host import peak_resident_memory
from vologan_fast.quantities.observation import failures, observe
from vologan_fast.report.grid import write_grid
from vologan_fast.training import checkpoint, loggers, run_report
from vologan_fast.training.build import build_training
from vologan_fast.training.compilation import uncompiled
from vologan_fast.training.distributed import PeerError, PeerLost, World
from vologan_fast.training.endings import DIVERGED
from vologan_fast.training.finite import FirstBadStep
from vologan_fast.training.losses import Losses
from vologan_fast.training.optimizers import load_optimizer, start_epoch
from vologan_fast.training.pending import PendingLosses, StepsAhead
from vologan_fast.training.run_folder import RunFolder
from vologan_fast.training.schedules import Plateau
from vologan_fast.training.step import StepState
from vologan_fast.training.thinning import stride
from vologan_fast.words import say, say_error

EVALUATED = 64
"""Held-out images of each domain that an evaluation looks at, evenly spread. They are kept in memory."""


WATCHED = 16
"""Held-out images of each domain by which a validation notices a collapse or a saturation."""


class TrainingError(RuntimeError):
    """Training cannot continue. The message names the step, the reason, and what is saved."""


class DivergedError(TrainingError):
    """Losses or weights are not finite, so they are not saved."""


class Trainer:
    """One training run: its networks, optimisers, loader and run folder.

    They are new. Then call `start` for a new run, or `resume`, and `train`. The folder is written by these calls alone.
    `log` names the loggers (`loggers.py`).
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run_folder: RunFolder,
        world: World,
        log: Sequence[str] = loggers.DEFAULT,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.world = world
        self.run_folder = run_folder
        self.device = device = world.device
        self.networks, self.optimizers, self.step = build_training(
            config,
            device,
            first_sample=world.rank * world.part_of(config.train.batch),
            reducer=world.reducer(),
        )
        self.loader = open_loader(
            dataset,
            config.train.batch,
            config.train.seed,
            rank=world.rank,
            world_size=world.size,
            device=device,
            local_world_size=world.local_size,
        )
        self.plateau = Plateau(config.schedule)
        self.finished_steps = 0
        self._end = 0
        """The last step of the training that was begun."""
        self.last_checkpoint: Path | None = None
        self.last_report: Path | None = None
        """The report, once this process has written it."""
        self._last_save = -1
        self._log = log
        self._fingerprint = dataset.fingerprint()
        """Of the data set that the restored checkpoint was trained on."""
        self._lines: dict[str, int] = {}
        """How many lines the logs had at the restored checkpoint."""
        self._last_losses: Losses | None = None
        self._bad = FirstBadStep(device)
        self._failing: set[str] = set()
        """Networks that had failed at the last validation, as the report names them."""
        self._left_out: set[int] = set()
        """Steps whose update was left out, counted from 1."""
        self._judging: tuple[Tensor, View, Judge] | None = None
        """The held-out images S that are judged, the view of them, and the judge."""
        self._pending = PendingLosses()
        self._ahead = StepsAhead(self.device)
        self._show: Callable[[int, str], None] = lambda step, summary: None

    def start(self, init_from: Path | None = None) -> None:
        """Start a run, with the weights of the checkpoint `init_from` if there is one. All ranks must call this.

        Raises CheckpointError for weights that cannot be read, and ConfigError if the folder cannot be written.
        """
        with self.world.together():
            if init_from is not None:
                checkpoint.load_weights(init_from, self.networks, averages=False)
                self.networks.update_averages(0)
        with self.world.together():
            if self.world.is_main:
                self.run_folder.lock()
                checkpoint.forget_start(self.run_folder.checkpoints)
                self.run_folder.begin(0, self.config, self._log)
        if init_from is not None or self.config.train.on_nan == "rollback":
            self.save()  # a run that is killed, or goes back, before its first regular checkpoint has these weights

    def resume(self, checkpoints: Sequence[Path]) -> None:
        """Continue from the last of the checkpoints that is whole. All ranks must call this, with the folder locked.

        Later ones are damaged. They are renamed, and a warning says which steps are lost. Raises CheckpointError if
        none is whole, and DataError if the run was trained on other images.
        """
        damaged: list[Path] = []
        reasons: list[str] = []
        for folder in reversed(checkpoints):
            reason = self.world.share(self._why_not(folder) if self.world.is_main else None)
            if reason is None:
                break
            damaged.append(folder)
            reasons.append(reason)
        else:
            others = "no older checkpoint is whole" if len(checkpoints) > 1 else "there is no other checkpoint"
            raise checkpoint.CheckpointError(f"{reasons[0]}; {others}")
        with self.world.together():  # what rank 0 can read and another rank cannot is no damage, but another disk
            if not self.world.is_main:
                self._restore(folder)
            if not self.dataset.has_fingerprint(self._fingerprint):
                raise DataError(
                    f"{self.dataset.root}: these are not the images that {folder.parent.parent} was trained on "
                    "(names or number of files differ); resume with the same data set"
                )
        with self.world.together():
            if self.world.is_main:
                for path, reason in zip(damaged, reasons, strict=True):
                    aside = checkpoint.set_damaged_aside(path)
                    say_error(f"warning: {reason}; it is kept as {aside.name}")
                if damaged:
                    first, last = self.finished_steps + 1, checkpoint.step_of(damaged[0])
                    steps = f"step {last} is" if first == last else f"steps {first} to {last} are"
                    say_error(f"warning: {steps} lost, and made again from {folder.name} on")
                if not checkpoint.has_checksums(folder):
                    what = "has no checksums.json (removed, or of a former version)"
                    say(f"warning: {folder}: {what}: damage may go unnoticed")
                self.run_folder.begin(self.finished_steps, self.config, self._log, self._lines)
        if self.dataset.skipping is not None:
            self.dataset.skipping.restore(
                self.world.share(list(self.run_folder.skipped.values()) if self.world.is_main else [])
            )
        self.last_checkpoint = folder
        self._last_save = self.finished_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.loader.steps_per_epoch

    @property
    def scheduled_steps(self) -> int:
        """Steps until the end of the learning-rate schedule."""
        return self.config.schedule.epochs * self.steps_per_epoch

    @property
    def _progress(self) -> float:
        """Fraction of the schedule's epochs that were over when this epoch began."""
        return (self.finished_steps // self.steps_per_epoch) / self.config.schedule.epochs

    def train(self, max_steps: int | None = None) -> bool:
        """Train up to `max_steps` in total, by default to the end of the schedule. Return False if a signal ended it.

        A signal ends it between two steps, and also while it waits for a file.

        Raises TrainingError for losses or weights that are not finite, and if the log or a grid cannot be written.
        Raises CheckpointError if a checkpoint cannot be written, and DataError for a file that cannot be read. Whatever
        ends the run between two steps, all finished steps are saved first, unless they are not finite. Saved
        checkpoints stay. All ranks return or raise after the same step.
        """
        try:
            return self._train(self.scheduled_steps if max_steps is None else max_steps)
        except stopping.Stopped:  # the finished steps are saved
            return False

    def _train(self, end: int) -> bool:
        train, self._end = self.config.train, end
        self.world.broadcast(self.networks)
        validated = self.world.share(self.run_folder.last_validation if self.world.is_main else -1)
        evaluated = self.world.share(max(self.run_folder.scores, default=-1) if self.world.is_main else -1)
        has_report = self.world.share(self.run_folder.report.exists() if self.world.is_main else False)
        with (
            self.loader,
            stopping.noticed("the steps since the last checkpoint are lost, and --resume goes on from it") as stopped,
            _progress(self.finished_steps, end) as self._show,
        ):
            due = self._due(self._validate_every) or (self.plateau.active and self._due(self.steps_per_epoch))
            if self.finished_steps and due and validated != self.finished_steps:
                self.validate()  # the resumed run was stopped before this validation
                validated = self.finished_steps
            if self.finished_steps and self._evaluation_due() and evaluated != self.finished_steps:
                self.evaluate()
                evaluated = self.finished_steps
            # Without steps to do, a run only makes the report that a killed process has left out.
            reported = self.finished_steps if has_report else -1
            logged_at, waited, unlogged = time.perf_counter(), 0.0, 0
            while self.finished_steps < end:
                asked = time.perf_counter()
                batch = self._next_batch(stopped())
                if batch is None:
                    break
                waited += time.perf_counter() - asked
                epoch = self.finished_steps // self.steps_per_epoch
                rates = self._set_learning_rates(epoch)
                losses = self._advance(*batch)
                self._ahead.add()
                unlogged += 1
                if self._goes_back(end):
                    validated = evaluated = reported = -1
                    continue

                if losses is not None and (self._line_due() or self.finished_steps in (1, end)):
                    losses = self.world.mean(losses)
                    now = time.perf_counter()
                    seconds = (now - logged_at) / unlogged
                    speed = {
                        "seconds": seconds,
                        "images_per_second": 2 * train.batch / seconds,
                        "data_wait_seconds": waited / unlogged,
                        "peak_memory_bytes": peak_memory(self.device),
                    }
                    logged_at, waited, unlogged = now, 0.0, 0
                    record = {"step": self.finished_steps, "split": "train", "epoch": epoch}
                    self._note_bad_images(self.finished_steps)
                    if self.world.is_main:
                        record |= self._skipped
                        self._pending.add(losses, {**record, **rates, **speed})
                self._show(self.finished_steps, "")
                if self.plateau.active and self._due(self.steps_per_epoch):
                    self.validate()  # its result is part of the checkpoint
                    validated = self.finished_steps
                # Save before other validations, so that a kill during them loses no steps.
                if self._due(train.save_every or self.steps_per_epoch):
                    self.save()
                if self._due(self._validate_every) and validated != self.finished_steps:
                    self.validate()
                    validated = self.finished_steps
                if self._evaluation_due():
                    self.evaluate()
                    evaluated = self.finished_steps
                if train.report_every > 0 and self._due(train.report_every):
                    self.report()
                    reported = self.finished_steps
            with self._saving(f"after step {self.finished_steps}"), self.world.together():
                self._log_arrived(wait=True)
            finished = self.finished_steps >= end
            if self._last_save != self.finished_steps:
                self.save()
            if finished and validated != self.finished_steps:
                self.validate()
            if finished and train.evaluate_every and evaluated != self.finished_steps:
                self.evaluate()
            if finished and train.report_every >= 0 and reported != self.finished_steps:
                self.report()
        return finished

    def _advance(self, synthetic: Tensor, real: Tensor) -> Losses | None:
        """Do the next step, and return its losses. None if its update was left out."""
        if self.finished_steps + 1 in self._left_out:
            self.finished_steps += 1
            return None
        losses = self.step(synthetic, real, self.finished_steps, self._progress)
        self.finished_steps += 1
        if self.step.skipped:
            self._last_losses = None
            self._leave_out(self.finished_steps)
            return None
        self._last_losses = losses
        self.networks.update_averages(self.finished_steps)
        self._bad.note(self.finished_steps, self.networks.learning.parameters())
        return losses

    def save(self) -> None:
        """Write a checkpoint of the current state.

        If losses or weights are not finite, raises TrainingError and writes no checkpoint.
        """
        steps = self._states_of_steps()
        self._note_bad_images(self.finished_steps)
        with self.world.together():
            if self.world.is_main:
                self._write_checkpoint(steps)
        self._last_save = self.finished_steps

    def validate(self) -> None:
        """Log the mean losses on the held-out images, and write their grid.

        Both domains contribute the same number of images, which is the size of the smaller held-out set. At the end of
        an epoch, the losses may lower the learning rate.
        """
        with self._saving(f"validation after step {self.finished_steps}"), self.world.together():
            if self.world.is_main:
                means = self._look_at_held_out_images()
                if self._due(self.steps_per_epoch):
                    self.plateau.end_epoch(self.finished_steps // self.steps_per_epoch - 1, means)
        if self.plateau.active:
            self.plateau.load_state_dict(self.world.share(self.plateau.state_dict()))

    def evaluate(self) -> None:
        """Judge the translations of held-out images, log the scores, and link the checkpoint if it is the best so far.

        The command `evaluate` may have linked another checkpoint, by other images. Its link moves only to a checkpoint
        that has a lower score than the linked one and than all others. A checkpoint of this step is saved first if
        there is none. Raises DataError if the images cannot be judged.
        """
        if self._last_save != self.finished_steps:
            self.save()
        with self._saving(f"evaluation after step {self.finished_steps}"), self.world.together():
            if self.world.is_main:
                self._judge_held_out_images()

    @contextlib.contextmanager
    def _saving(self, what: str) -> Iterator[None]:
        """Save the finished steps if an error ends the run inside, and say so in the error.

        All ranks must be inside, between the same steps, and get errors together. `what` begins the sentence.
        """
        try:
            yield
        except DivergedError:
            raise
        except PeerLost as error:
            raise PeerLost(f"{what}: {error}; {self._saved_alone()}") from error
        except Exception as error:
            saved = self._saved_after_error()
            if isinstance(error, (DataError, TrainingError, PeerError, checkpoint.CheckpointError)):
                raise type(error)(f"{what}: {error}; {saved}") from error
            raise

    def _saved_after_error(self) -> str:
        """Save the finished steps, and return a part of a sentence that says what is saved."""
        try:
            self._note_bad_images(None)
            if self._last_save != self.finished_steps and self.finished_steps:
                if self.world.is_main:
                    checkpoint.give_up_reserve(self.run_folder.checkpoints)  # the lines of the log need room, too
                self.save()
        except (TrainingError, PeerError, PeerLost, checkpoint.CheckpointError) as second:
            return f"the steps after {max(self._last_save, 0)} are lost: {second}"
        return f"saved up to step {self.finished_steps}" if self.finished_steps else "no step was finished"

    def _note_bad_images(self, step: int | None) -> None:
        """Write down the bad images that were replaced up to `step`, on all ranks. All ranks must call this.

        None: those of all steps, also of batches that were made ahead.
        """
        if self.dataset.skipping is None:
            return
        found = self.world.gather(self.dataset.skipping.found())
        with self.world.together(), self._writing():
            self.run_folder.add_skipped(bad for of_rank in found for bad in of_rank if step is None or bad.step <= step)

    @property
    def _skipped(self) -> dict[str, int]:
        """The number of bad images so far, for a line of the log, if they are skipped. Only rank 0 knows it."""
        return {} if self.dataset.skipping is None else {"skipped": len(self.run_folder.skipped)}

    def _saved_alone(self) -> str:
        """Do as `_saved_after_error` where other ranks do not answer any more. What only they hold cannot be saved."""
        if self._last_save != self.finished_steps and self.finished_steps:
            if not self.world.is_main or self.config.loss.pool:
                return f"the steps after {max(self._last_save, 0)} are lost"
            try:
                self._write_checkpoint([])
            except (TrainingError, checkpoint.CheckpointError) as second:
                return f"the steps after {max(self._last_save, 0)} are lost: {second}"
            self._last_save = self.finished_steps
        return f"saved up to step {self.finished_steps}" if self.finished_steps else "no step was finished"

    def report(self) -> None:
        """Write the report of the run, and log its quantities. Whatever fails costs the report, and not the run.

        Losses that arrive meanwhile are no part of the report: raises TrainingError if they are not finite.
        """
        with self._saving(f"report after step {self.finished_steps}"), self.world.together():
            if self.world.is_main:
                self._log_arrived()
                try:
                    self._write_report()
                except Exception as error:
                    reason = str(error).strip().splitlines() or [type(error).__name__]
                    say_error(f"no report of step {self.finished_steps}: {reason[0]}")

    def _write_report(self) -> None:
        with uncompiled():
            images = run_report.held_out(self.dataset, self.finished_steps)
            observation = observe(self.networks, self.config, images, self.finished_steps)
        self.run_folder.add_observation(observation)
        record = run_report.read_record(self.run_folder.path, str(self.dataset.root), self.config)
        self.last_report = run_report.write_report(self.run_folder.report, [(record, observation)])

    def _states_of_steps(self) -> list[StepState]:
        """Return the image pools of all ranks, on rank 0. All ranks must call this."""
        return self.world.gather(self.step.state_dict()) if self.config.loss.pool else []

    def _write_checkpoint(self, steps: list[StepState]) -> None:
        self._log_arrived(wait=True)
        self._check_weights()
        with self._writing():
            self.run_folder.sync()  # a checkpoint stands for all lines up to its step
        state = {
            "step": self.finished_steps,
            "left_out": sorted(self._left_out),
            "lines": self.run_folder.lines(self.finished_steps),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "loader": self.loader.state_dict(),
            "plateau": self.plateau.state_dict(),
            "data": self.dataset.fingerprint(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        if steps:
            state["image_pools"] = steps
        self.last_checkpoint = checkpoint.save_checkpoint(
            self.run_folder.checkpoints,
            self.finished_steps,
            self.networks,
            state,
            self.config.train.keep_checkpoints,
            self.run_folder.scores,
            self.config.train.keep_every,
        )

    def _look_at_held_out_images(self) -> dict[str, float]:
        self._log_arrived()
        batch = self.world.part_of(self.config.train.batch)  # a size that fits into this device's memory
        synthetic, real = (
            held_out_batches(self.dataset, domain, batch, str(self.device), step=self.finished_steps)
            for domain in DOMAINS
        )
        sums: dict[str, Tensor] = {}
        count = 0
        seen: dict[str, list[Tensor]] = {domain: [] for domain in DOMAINS}
        rows: dict[str, list[tuple[Tensor, ...]]] = {}
        for s, t in zip(synthetic, real, strict=False):  # if the domains differ in length, the shorter one decides
            s, t = s[: len(t)], t[: len(s)]
            losses, images = self.step.evaluate(s, t, self._progress, first_image=count)
            sums = {name: sums.get(name, 0) + len(s) * value for name, value in losses.terms().items()}
            count += len(s)
            if count <= max(WATCHED, len(s)):
                for domain, batch_of in zip(DOMAINS, (s, t), strict=True):
                    seen[domain].append(batch_of.cpu())
            for name, of_batch in images.rows(s, t).items():
                shown = rows.setdefault(name, [])
                shown += of_batch[: self.config.train.grid_images - len(shown)]
        means = dict(zip(sums, (torch.stack(list(sums.values())) / count).tolist(), strict=True))
        self._check_finite(means, self.finished_steps)
        path = self.run_folder.samples / f"step-{self.finished_steps:08d}.png"
        with self._writing():
            of_domain = dict(zip("ST", self.config.data.channel_sets.values(), strict=True))
            if self._grid_due():
                path.parent.mkdir(exist_ok=True)  # somebody may have removed the folder
                write_grid(path, [(name, row) for name, shown in rows.items() for row in shown], of_domain)
                self.run_folder.add_picture(path, self.finished_steps)
            # The line comes last. If it is there, a resumed run does not validate again.
            if self.dataset.skipping is not None:
                self.run_folder.add_skipped(
                    bad for bad in self.dataset.skipping.found() if bad.step <= self.finished_steps
                )
            self.run_folder.log({"step": self.finished_steps, "split": "held_out", **means, **self._skipped})
            self.run_folder.sync()
        self._say_failures({domain: torch.cat(of) for domain, of in seen.items()})
        return means

    def _say_failures(self, seen: dict[str, Tensor]) -> None:
        """Say that a generator has collapsed, or that a discriminator is saturated, when it was not so before."""
        images = {domain: Images(pixels, [""] * len(pixels)) for domain, pixels in seen.items()}
        with uncompiled():
            found = failures(self.networks, self.config, images)
        names = {sentence.split()[0]: sentence for sentence in found}
        for name in names.keys() - self._failing:
            say_error(f"warning: step {self.finished_steps}: {names[name]}")
        self._failing = set(names)

    def _judge_held_out_images(self) -> None:
        row = self._judged()
        found = {name: score.value for name, score in row.scores.items()}
        found |= {name.replace(" ", "_"): value.distance.value for name, value in row.values.items()}
        scores, folder = self.run_folder.scores, self.run_folder.checkpoints
        scores[self.finished_steps] = found["score"]
        linked = checkpoint.find_best(folder)
        if linked is not None and checkpoint.step_of(linked) not in scores:
            scores[checkpoint.step_of(linked)] = self._score_of(linked)
        lowest = checkpoint.lowest_score(folder, scores)
        assert lowest is not None  # this step has a score
        if linked is None or checkpoint.step_of(lowest) == self.finished_steps:
            linked = checkpoint.link_best(lowest).resolve()  # before the line: without it, the step is evaluated again
        with self._writing():
            self.run_folder.log({"step": self.finished_steps, "split": "evaluation", **found})
        best = checkpoint.step_of(linked)
        self._show(self.finished_steps, f"score {found['score']:.3f}, best {scores[best]:.3f} at step {best}")

    def _judged(self) -> Row:
        """Return what is found about the translations of held-out images. Raises DataError if they cannot be judged."""
        try:
            if self._judging is None:
                images = {
                    domain: of.pixels
                    for domain, of in held_out_images(self.dataset, EVALUATED, self.finished_steps).items()
                }
                view = View.of(self.dataset.config, "synthetic", images["real"])
                judge = view.judge(images["synthetic"], images["real"], resamples=0)
                self._judging = images["synthetic"], view, judge
            synthetic, view, judge = self._judging
            size = self.world.part_of(self.config.train.batch)
            translated = [
                self.step.translate_held_out(part.to(self.device), number * size).float().cpu()
                for number, part in enumerate(synthetic.split(size))
            ]
            return judge.row("G(S)", view.translated(torch.cat(translated), synthetic))
        except ValueError as error:
            raise DataError(f"{self.dataset.root}: the held-out images cannot be judged: {error}") from error

    def _score_of(self, folder: Path) -> float:
        """Return the score of another checkpoint, which `evaluate` has linked. It is infinite for broken weights."""
        translator = self.networks.translators[0]
        name = "average_st" if self.networks.decay else "generator_st"
        weights = {key: value.clone() for key, value in translator.state_dict().items()}
        try:
            checkpoint.load_network(folder / f"{name}.safetensors", translator)
            finite = all(bool(parameter.isfinite().all()) for parameter in translator.parameters())
            return self._judged().scores["score"].value if finite else math.inf
        except checkpoint.CheckpointError:
            return math.inf
        finally:
            translator.load_state_dict(weights)

    def _evaluation_due(self) -> bool:
        every = self.config.train.evaluate_every
        return every > 0 and self._due(every)

    def _why_not(self, folder: Path) -> str | None:
        """Restore a checkpoint. Return a sentence if it is damaged."""
        try:
            self._restore(folder)
        except checkpoint.CheckpointError as error:
            return str(error)
        return None

    def _restore(self, folder: Path) -> None:
        """Take over the state of a checkpoint. Raises CheckpointError. Then another checkpoint can be restored."""
        state = checkpoint.load_state(folder)
        checkpoint.load_weights(folder, self.networks)
        try:
            left_out = set(state.get("left_out", ()))  # former versions left no step out
            if not all(type(step) is int and 1 <= step <= state["step"] for step in left_out):
                raise ValueError(f"left_out: expected steps up to {state['step']}, found {left_out}")
            lines = state.get("lines", {})  # nor did they count lines
            if not (isinstance(lines, dict) and all(type(count) is int and count >= 0 for count in lines.values())):
                raise ValueError(f"lines: expected the number of lines of each log, found {lines}")
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, state["optimizers"][name], state["step"] - len(left_out))
            if state["loader"] != {"step": state["step"]}:
                raise ValueError(f"loader: expected a loader after step {state['step']}, found {state['loader']}")
            self.loader.load_state_dict(state["loader"])
            if self.config.loss.pool:  # another number of ranks shares or drops some of the pools
                self.step.load_state_dict(state["image_pools"][self.world.rank % len(state["image_pools"])])
            if self.plateau.active:  # checkpoints of older versions have no such entry
                self.plateau.load_state_dict(state["plateau"])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        except Exception as error:  # any object may be where a tensor is expected
            reason = f"{type(error).__name__}: {error}"
            raise checkpoint.CheckpointError(f"{folder / 'state.pt'}: does not fit this run ({reason})") from error
        self.finished_steps, self._fingerprint = state["step"], state["data"]
        self._lines = lines
        self._left_out |= left_out

    def _next_batch(self, stop: bool) -> tuple[Tensor, Tensor] | None:
        """Return this rank's part of the next batch, once all ranks have theirs. None if any rank passes `stop`.

        Raises DataError on all ranks if one of them cannot read its part.
        """
        place = self.loader.state_dict()
        batch = None
        with self._saving(f"step {self.finished_steps + 1}"):
            try:
                with self.world.together(stop):
                    self._log_arrived()
                    if not stop:
                        batch = next(self.loader)
            except stopping.Stopped:
                pass
            except Exception:  # also that another rank could not read its part
                self.loader.load_state_dict(place)
                raise
        if self.world.stopping:
            self.loader.load_state_dict(place)  # go back, as the batch was not used
            return None
        return batch

    def _goes_back(self, end: int) -> bool:
        """Return whether the run went back, because a step made weights that are not finite.

        It looks at what has arrived, or waits where the host waits anyway. All ranks have the same weights, so they
        find the same. Raises DivergedError if the run may not go back.
        """
        train = self.config.train
        if train.on_nan != "rollback":
            return False  # lines of the log and checkpoints are looked at in any case
        intervals = (train.save_every, train.validate_every, train.evaluate_every, max(train.report_every, 0))
        if self.finished_steps == end or any(self._due(every or self.steps_per_epoch) for every in intervals):
            bad = self._bad.now()
        elif self._due(train.log_every):
            bad = self._bad.arrived()
        else:
            return False
        if bad is None:
            return False
        self._leave_out(bad)
        checkpoints = self.world.share(checkpoint.list_checkpoints(self.run_folder.checkpoints))
        with self.world.together():
            self._restore(checkpoints[-1])
            if self.world.is_main:
                say_error(f"warning: going back to step {self.finished_steps}, and on without step {bad}")
                self.run_folder.begin(self.finished_steps, self.config, self._log, self._lines)
        self._pending.clear()
        self._bad.forget()
        self._last_losses, self._last_save = None, self.finished_steps
        return True

    def _leave_out(self, step: int) -> None:
        """Keep the record of a bad step, and leave it out. Raises DivergedError if there are too many."""
        with self.world.together():
            path = self._keep_bad_step(step) if self.world.is_main else None
        self._left_out.add(step)
        most = self.config.train.nan_limit
        what = f"step {step} made numbers that are not finite; {path} names its images"
        if len(self._left_out) > most:
            raise self._diverged(f"{what}; --train.nan-limit allows {most} of such steps")
        if self.world.is_main:
            say_error(f"warning: {what}")

    def _keep_bad_step(self, step: int) -> Path:
        """Write which images and random numbers a step had. Raises ConfigError if that is not possible."""
        sampler, train = self.loader.sampler, self.config.train
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        files = {}
        for domain in DOMAINS:
            drawn = sampler.indices(domain, epoch, place * train.batch, (place + 1) * train.batch)
            records = [self.dataset.train[domain][index] for index in drawn.tolist()]
            files[domain] = [[str(file) for file in record.files] for record in records]
        return self.run_folder.keep_bad_step(step, {"epoch": epoch, "seed": train.seed, "images": files})

    def _set_learning_rates(self, epoch: int) -> dict[str, float]:
        settings = {
            "generator": self.config.generator_optimizer,
            "discriminator": self.config.discriminator_optimizer,
        }
        return {
            f"learning_rate/{name}": start_epoch(
                optimizer, settings[name], self.config.schedule, epoch, self.plateau.factor
            )
            for name, optimizer in self.optimizers.items()
        }

    def _log_arrived(self, wait: bool = False) -> None:
        """Write and show the lines whose losses have arrived. With `wait`, wait for all losses."""
        for losses, record in self._pending.arrived(wait):
            if self.config.train.on_nan == "rollback" and not all(map(math.isfinite, losses.values())):
                continue  # the run will go back
            self._check_finite(losses, record["step"])
            with self._writing():
                self.run_folder.log({**record, **losses})
            self._show(record["step"], _summary(losses, record))

    def _check_finite(self, losses: dict[str, float], step: int) -> None:
        for name, value in losses.items():
            if not math.isfinite(value):
                raise self._diverged(f"step {step}: the loss {name} is {value}")

    def _check_weights(self) -> None:
        """Raise TrainingError if the last losses or the weights are not finite.

        Logged losses are not enough for this: not all steps are logged, and a step's losses come from the weights
        before the step.
        """
        if self._last_losses is not None:
            terms = {name: float(value) for name, value in self._last_losses.terms().items()}
            self._check_finite(terms, self.finished_steps)
        for name, network in self.networks.named_children():
            norms = torch.stack(torch._foreach_norm([p.detach() for p in network.parameters()], float("inf")))
            if not norms.isfinite().all():
                raise self._diverged(f"step {self.finished_steps}: weights of {name} are not finite")

    def _diverged(self, what: str) -> DivergedError:
        saved = f"last saved: {self.last_checkpoint or 'nothing: no checkpoint was due yet'}"
        first = self._bad.now()
        if first is not None and first not in self._left_out and self.world.is_main:
            with contextlib.suppress(ConfigError):  # the folder cannot be written
                saved = f"{self._keep_bad_step(first)} names the images of the first such step; {saved}"
        return DivergedError(f"{what}; {saved}. {DIVERGED}")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self.run_folder.path}: cannot be written ({error.strerror or error})") from error

    def _due(self, interval: int) -> bool:
        return self.finished_steps % interval == 0

    def _line_due(self) -> bool:
        """Return whether the log has a line of this step. In long runs, lines become rare (`thinning`)."""
        every = self.config.train.log_every
        return self._due(every * stride(self.finished_steps // every, self.config.train.log_limit))

    def _grid_due(self) -> bool:
        """Return whether this validation has a grid. In long runs, grids become rare, except that of the last step."""
        number = self.finished_steps // self._validate_every
        return self.finished_steps == self._end or number % stride(number, self.config.train.grid_limit) == 0

    @property
    def _validate_every(self) -> int:
        return self.config.train.validate_every or self.steps_per_epoch


def peak_memory(device: torch.device) -> int:
    """Return the peak memory so far, in bytes: allocated on the GPU, or resident in this process."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_resident_memory()


@contextlib.contextmanager
def _progress(start: int, end: int) -> Iterator[Callable[[int, str], None]]:
    """Yield show(step, summary). It updates a live bar on a terminal; elsewhere it prints each summary as a line.

    The run goes on if nobody reads the lines any more.
    """

    def show(step: int, summary: str) -> None:
        try:
            if summary:
                say(f"step {step}/{end}  {summary}")
        except (OSError, stopping.OutputError):  # the former without `stopping.run`
            stopping.leave_closed_output()

    console = Console()
    if not console.is_terminal:
        yield show
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=end, completed=start)
        yield lambda step, summary: bar.update(task, completed=step, description=summary or None)


def _summary(losses: dict[str, float], speed: dict[str, float]) -> str:
    generators, discriminators = (
        sum(value for name, value in losses.items() if name.startswith(network) and name.endswith("/total"))
        for network in ("generator", "discriminator")
    )
    # The loss that holds a translation to its input: in a CycleGAN the cycle, else the contrast.
    held = "cycle" if "generator_ts/cycle" in losses else "contrast"
    of_input = losses["generator_ts/cycle" if held == "cycle" else "generator_st/contrast"]
    waits = speed["data_wait_seconds"] / speed["seconds"]
    return (
        f"G {generators:.3f}  D {discriminators:.3f}  {held} {of_input:.3f}  "
        f"{speed['images_per_second']:.1f} images/s  waits for data {waits:.1%}  "
        f"{speed['peak_memory_bytes'] / 2**30:.1f} GiB"
    )
