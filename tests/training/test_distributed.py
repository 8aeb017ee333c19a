"""Two processes on one machine, by torchrun and gloo. They learn the same as one process, and they end together."""

import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore

pytest.importorskip("tyro")  # the command needs it
from vologan_fast.config import ConfigError
from vologan_fast.data import load_dataset
from vologan_fast.data.demo import make_demo
from vologan_fast.data.sampling import Sampler
from vologan_fast.report.record import read_lines
from vologan_fast.train import main
from vologan_fast.training.distributed import World, _unused_part
from vologan_fast.training.run_folder import read_config

TINY = shlex.split("""
    --preset demo --device cpu --data.size 32 --train.batch 4 --train.log-every 1 --train.validate-every 1000
    --train.save-every 1000 --generator.width 4 --generator.max-width 8 --generator.levels 2 --generator.dropout 0.2
    --generator.spectral-norm --discriminator.widths 4 4 8 --discriminator.down-widths 4 4 8
    --generator-optimizer.kind sgd --discriminator-optimizer.kind sgd --loss.pixel l2 --loss.adversarial mse
    --generator.output sigmoid --generator.activation gelu --discriminator.activation gelu
    --train.precision float32
    --train.report-every -1
""")
# The sums of two ranks have other rounding errors than those of one. So all functions here are smooth. With an L1 loss,
# a kinked activation or a clipped output, a rounding error could flip a sign and so grow. Adam is not used either,
# since it makes full steps from gradients that are only rounding errors.
TIMES = ("seconds", "images_per_second", "data_wait_seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", count=6, size=64)


def start(*command):
    """Start a command as two ranks."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", *map(str, command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: sums depend on the number of threads
    return subprocess.Popen(
        torchrun, cwd="/", env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def end(running):
    """Wait for the end. Return exit code, output, and the command's own errors, or all errors if it has none."""
    try:
        output, errors = running.communicate(timeout=300)
    finally:
        running.terminate()  # torchrun then ends its processes too
    ours = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert running.returncode or not ours, errors
    return running.returncode, output, ours or errors


def train_two(run, data, *options):
    return start("-m", "vologan_fast.train", *TINY, "--run-dir", run, "--data", data, *options)


def metrics(run, split="train"):
    records = read_lines(run / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in (*TIMES, "split")} for r in records if r["split"] == split]


def weights(run, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {
        f"{path.stem}.{name}": tensor
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


TALKING = """
import dataclasses, sys, torch
from vologan_fast.config import ConfigError
from vologan_fast.training.distributed import GradientReducer, PeerError, World

@dataclasses.dataclass
class Values:
    name: str
    a: torch.Tensor
    b: torch.Tensor

def error_of(action):
    try:
        action()
    except Exception as error:
        return error

def fail_on_rank_1():
    with world.together():
        if rank == 1:
            raise ValueError("here")

with World() as world:
    rank = world.rank
    assert world.size == world.local_size == 2 and world.local_rank == rank and world.part_of(6) == 3
    assert world.use(torch.device("cpu")).type == "cpu"
    assert world.share(f"from {rank}") == "from 0"
    gathered = world.gather({"tensor": torch.tensor(rank)})
    assert gathered == ([{"tensor": torch.tensor(0)}, {"tensor": torch.tensor(1)}] if rank == 0 else [])

    # gradients: in three buckets, in an order of memory of their own, missing on one rank, missing on both
    shapes = [(8, 4, 3, 3), (5,), (), (8, 4, 3, 3), (7,)]
    parameters = [torch.nn.Parameter(torch.empty(shape)) for shape in shapes]
    parameters[0].data = parameters[0].data.to(memory_format=torch.channels_last)
    for i, parameter in enumerate(parameters):
        if i != 4 and (i, rank) != (1, 1):
            parameter.grad = torch.full(shapes[i], 10.0 * i + rank)
    parameters[3].grad += torch.arange(288.0).view(8, 4, 3, 3)
    parameters[3].grad = parameters[3].grad.to(memory_format=torch.channels_last)
    reducer = GradientReducer(world, bucket_bytes=4 * 300)
    assert [len(bucket) for bucket in reducer._buckets(parameters)] == [3, 2]
    reducer.start(parameters[:2])
    reducer.start(parameters[2:])
    reducer.finish()
    for parameter, mean in zip(parameters, [0.5, 5.0, 20.5, 30.5, 0.0]):
        rising = torch.arange(288.0).view(8, 4, 3, 3) if mean == 30.5 else 0.0
        assert torch.equal(parameter.grad, torch.zeros_like(parameter) + mean + rising)

    means = world.mean(Values("x", torch.full((2, 3), float(rank)), torch.tensor(2.0 + rank)))
    assert means.name == "x" and torch.equal(means.a, torch.full((2, 3), 0.5)) and means.b == 2.5

    module = torch.nn.BatchNorm1d(3)
    torch.nn.init.constant_(module.weight, rank + 1.0)
    world.broadcast(module)
    assert (module.weight == 1).all()

    with world.together(stop=False):
        pass
    assert not world.stopping
    with world.together(stop=rank == 1):
        pass
    assert world.stopping

    world.check_same(what="this")
    error = error_of(fail_on_rank_1)
    assert str(error) == "here" and isinstance(error, ValueError if rank else PeerError)
    error = error_of(lambda: world.check_same(what=rank))
    assert "what: what rank 1 on" in str(error) and isinstance(error, ConfigError if rank else PeerError)
print("done")
"""


def test_ranks_talk(tmp_path):
    script = tmp_path / "talking.py"
    script.write_text(TALKING)
    code, output, errors = end(start(script))
    assert code == 0, errors
    assert output.count("done") == 2


WATCHED = """
import sys, torch
from vologan_fast import train
from vologan_fast.training import trainer

class Watched(trainer.Trainer):
    def train(self, max_steps):
        finished = super().train(max_steps)
        torch.save(self.networks.state_dict(), f"{sys.argv[1]}-{self.world.rank}.pt")
        return finished

trainer.Trainer = Watched
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Return the folder of two runs of 4 steps: `alone` in one process, and `pair` in two, then one, then two."""
    folder = tmp_path_factory.mktemp("runs")
    watched = folder / "watched.py"
    watched.write_text(WATCHED)
    torch.set_num_threads(1)
    assert main([*TINY, "--run-dir", str(folder / "alone"), "--data", str(data), "--max-steps", "4"]) == 0
    pair = ["--run-dir", str(folder / "pair"), "--max-steps"]
    code, output, errors = end(start(watched, folder / "first", *TINY, "--data", data, *pair, 2))
    assert code == 0, errors
    assert main([*pair, "3", "--resume"]) == 0
    code, output, errors = end(start(watched, folder / "last", *pair, 4, "--resume"))
    assert code == 0, errors
    (folder / "output").write_text(output)
    return folder


def test_two_ranks_learn_what_one_learns(runs):
    """Gradients are means over the whole batch, dropout depends on the sample, and one process can resume two."""
    alone, pair = weights(runs / "alone", 4), weights(runs / "pair", 4)
    assert alone.keys() == pair.keys() and len(alone) > 100
    for name, value in alone.items():
        torch.testing.assert_close(pair[name], value, rtol=1e-4, atol=1e-6, msg=name)
    before = weights(runs / "pair", 2)
    assert max((value - before[name]).abs().max() for name, value in pair.items()) > 1e-3  # the weights have changed


def test_both_ranks_hold_the_same_bits(runs):
    for moment in ("first", "last"):
        zero, one = (torch.load(runs / f"{moment}-{rank}.pt") for rank in (0, 1))
        assert all(torch.equal(value, one[name]) for name, value in zero.items())


@pytest.mark.parametrize(("split", "steps"), [("train", [1, 2, 3, 4]), ("held_out", [2, 3, 4])])
def test_rank_0_logs_the_means_of_the_whole_batch_once(runs, split, steps):
    pair = metrics(runs / "pair", split)
    assert [record["step"] for record in pair] == steps
    alone = {record["step"]: record for record in metrics(runs / "alone", split)}
    for found in pair:
        if found["step"] in alone:
            assert found == pytest.approx(alone[found["step"]], rel=1e-4)
    assert (runs / "output").read_text().count("resuming after step 3") == 1
    assert "(2 processes on cpu, 2 steps an epoch)" in (runs / "output").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cyclegan", "cut"])
def test_held_out_losses_of_a_generator_with_noise_do_not_depend_on_the_processes(tmp_path, method):
    data = make_demo(tmp_path / "data", count=15, size=64)  # 3 are held out: batches of 1 and of 2
    options = ["--max-steps", "1", "--generator.noise-channels", "2", "--train.method", method]
    assert main([*TINY, "--run-dir", str(tmp_path / "alone"), "--data", str(data), *options]) == 0
    code, _, errors = end(train_two(tmp_path / "pair", data, *options))
    assert code == 0, errors
    alone, pair = (metrics(tmp_path / name, "held_out") for name in ("alone", "pair"))
    assert len(pair) == 1
    assert pair[0] == pytest.approx(alone[0], rel=1e-3)


@pytest.mark.slow
def test_each_rank_has_an_image_pool_that_survives_a_stop(tmp_path, data):
    """Two ranks go on to the same bits. One rank alone goes on with the pool of rank 0."""
    options = ("--loss.pool", 3, "--loss.penalty", "r1", "--schedule.epochs", 100, "--max-steps")
    for run, steps in (("straight", (6,)), ("parts", (3, 6))):
        for step in steps:
            command = ["-m", "vologan_fast.train", "--run-dir", tmp_path / run]
            more = ["--resume", "--max-steps", step] if step > steps[0] else [*TINY, "--data", data, *options, step]
            code, _, errors = end(start(*command, *more))
            assert code == 0, errors
    straight, parts = weights(tmp_path / "straight", 6), weights(tmp_path / "parts", 6)
    assert len(straight) > 100 and all(torch.equal(value, parts[name]) for name, value in straight.items())
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "parts")
    pools = [
        torch.load(tmp_path / run / "checkpoints" / "step-00000006" / "state.pt", weights_only=True)["image_pools"]
        for run in ("straight", "parts")
    ]
    assert len(pools[0]) == 2 and not torch.equal(pools[0][0]["s"]["images"], pools[0][1]["s"]["images"])
    for of_straight, of_parts in zip(*pools, strict=True):
        assert all(torch.equal(of_straight[domain]["images"], of_parts[domain]["images"]) for domain in "st")
    assert main(["--run-dir", str(tmp_path / "parts"), "--resume", "--max-steps", "7"]) == 0
    state = torch.load(tmp_path / "parts" / "checkpoints" / "step-00000007" / "state.pt", weights_only=True)
    assert len(state["image_pools"]) == 1


@pytest.mark.slow
def test_sigterm_stops_all_ranks_after_the_same_step(tmp_path, data):
    run = tmp_path / "run"
    running = train_two(run, data, "--schedule.epochs", 100_000)
    path, deadline = run / "metrics.jsonl", time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    code, output, errors = end(running)
    assert code
    assert f"go on with: torchrun --nproc-per-node=2 -m vologan_fast.train --run-dir {run} --resume" in output, errors
    (saved,) = (run / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert main(["--run-dir", str(run), "--resume", "--max-steps", str(step + 1)]) == 0
    assert [record["step"] for record in metrics(run)] == list(range(1, step + 2))


@pytest.mark.slow
def test_a_file_that_one_rank_cannot_read_ends_both_with_one_sentence(tmp_path):
    data = make_demo(tmp_path / "data", count=6, size=64)
    run = tmp_path / "run"
    options = ("--train.batch", "2", "--data.backend", "torch", "--loss.pool", "2")
    assert main([*TINY, "--run-dir", str(run), "--data", str(data), "--max-steps", "1", *options]) == 0
    config = read_config(run / "config.json")[1]
    records = load_dataset(data, config.data, config.train.seed).train
    lengths = {domain: len(of_domain) for domain, of_domain in records.items()}
    sampler = Sampler(config.train.seed, lengths, 2, (32, 32), config.data.augment, rank=1, world_size=2)
    broken = records["real"][sampler.draw("real", 1)[0].index].color
    broken.write_bytes(broken.read_bytes()[:-200])

    code, _, errors = end(train_two(tmp_path / "two", data, *options))
    assert code and len(errors) == 1, errors
    assert errors[0].startswith(f"error: step 2: {broken}: ")
    assert [path.name for path in (tmp_path / "two" / "checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_both_ranks(tmp_path, data):
    code, _, errors = end(train_two(tmp_path / "run", data, "--generator-optimizer.learning-rate", "1e30"))
    assert code and len(errors) == 1, errors
    assert "is nan" in errors[0] or "is inf" in errors[0]


DISAGREEING = """
import os, sys
from vologan_fast import train
data, other, *arguments = sys.argv[1:]
sys.exit(train.main([*arguments, "--data", data if os.environ["RANK"] == "0" else other]))
"""


@pytest.mark.slow
def test_ranks_that_see_different_images_leave_no_run_folder(tmp_path, data):
    """So the same command can be repeated once they see the same."""
    other = make_demo(tmp_path / "other", count=5, size=64)
    script = tmp_path / "disagreeing.py"
    script.write_text(DISAGREEING)
    run = tmp_path / "run"
    code, _, errors = end(start(script, data, other, *TINY, "--run-dir", run, "--max-steps", 1))
    assert code and len(errors) == 1, errors
    assert "data: what rank 1 on " in errors[0] and "has is not what rank 0 has" in errors[0]
    assert not run.exists()


KILLED = """
import os, sys
from vologan_fast import train
from vologan_fast.training import trainer
step = trainer.Trainer._set_learning_rates
def killed(self, epoch):
    if self.world.rank == 1 and self.finished_steps == 1:
        os.kill(os.getpid(), 9)
    return step(self, epoch)
trainer.Trainer._set_learning_rates = killed
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_the_other_with_it(tmp_path, data):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    begin = time.monotonic()
    code, *_ = end(start(script, *TINY, "--run-dir", tmp_path / "run", "--data", data))
    assert code and time.monotonic() - begin < 30  # torchrun would kill a running process after 30 s
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_and_resume(tmp_path, data):
    run = tmp_path / "run"
    code, _, errors = end(train_two(run, data, "--device", "cuda", "--max-steps", "2"))
    assert code == 0, errors
    code, _, errors = end(
        start("-m", "vologan_fast.train", "--run-dir", run, "--resume", "--device", "cuda", "--max-steps", 4)
    )
    assert code == 0, errors
    assert [record["step"] for record in metrics(run)] == [1, 2, 3, 4]


def test_a_batch_that_cannot_be_shared_and_ranks_without_a_gpu_are_refused(monkeypatch):
    world = World()
    world.size, world.local_size, world.local_rank = 3, 3, 2
    with pytest.raises(ConfigError, match=r"--train.batch is 8: expected a multiple of the number of processes, 3"):
        world.part_of(8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(World, "check_same", lambda self, **values: None)
    monkeypatch.setattr(World, "_meet", lambda self, state, message=None: None)
    with pytest.raises(ConfigError, match=r"--nproc-per-node=3: expected at most 2, the number of GPUs of"):
        world.use(torch.device("cuda"))


def test_an_incomplete_environment_gets_one_sentence(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--preset", "demo"]) == 1
    assert "error: $RANK is '': expected a number, as torchrun sets it beside $WORLD_SIZE" in capsys.readouterr().err


def test_restarted_ranks_share_a_part_of_the_store_without_the_former_keys():
    """torchrun keeps its store when it restarts the ranks. A rank of a former start may have got no answer."""
    store = HashStore()
    store.set("hello/1", "a rank that was killed")
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(lambda rank: _unused_part(store, rank, 3), range(3)))
        assert not found[0].check(["address"])
        found[2].set("address", "here")
        assert found[0].get("address") == found[1].get("address") == b"here"


def test_a_process_alone_needs_no_other():
    with World() as world:
        assert (world.rank, world.size, world.is_main, world.launcher) == (0, 1, True, "python")
        assert world.reducer() is None and world.part_of(7) == 7 and world.share("x") == "x"
        with world.together(stop=True):
            pass
        assert world.stopping
        with pytest.raises(ValueError, match="here"), world.together():
            raise ValueError("here")
