"""Build the wheel, install it in an empty environment, and use it from an empty directory.

    python tools/wheel_check.py             some six minutes; 7 GB in a temporary directory
    python tools/wheel_check.py --keep      leave that directory for a look

First the wheel is installed alone. A mask, SignPruner, the console script and `tickets export` must work. Then a user's
way follows: prepare a folder of images, search with a timm network, train, compare, verify. Whenever a command fails
for a missing library, the command that its message names is run, and nothing else is installed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from harness.cli.errors import clear_errors
from harness.cli.options import parse

ROOT = Path(__file__).resolve().parents[1]
INSIDE = ("harness", "recipes", "signed_tickets", "pyproject.toml", "README.md", "LICENSE")
"""What a wheel is built from. The rest of the clone must not be needed."""
NEEDED = re.compile(r"needs \S+, which is not installed; run: pip install '(signed-tickets\[\w+\])'")
REFUSED = re.compile(rf"^(?:error|no answer): .*{NEEDED.pattern}", re.MULTILINE)
"""Warnings name extras, too. Only an error ends a command."""
MOST_EXTRAS = 3
"""Extras that one command may ask for, one after the other."""
TINY = "--num-levels 1 --warmup-epochs 1 --level-epochs 1 --final.epochs 1 --global-batch-size 16"
IN_MEMORY = """
import torch, signed_tickets
from signed_tickets import SignPruner, load_signed_mask

# AWS in one's own loop, logged as a local run.
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
images, labels = torch.randn(16, 4), torch.randint(2, (16,))
pruner = SignPruner(model, method="aws", classifier="2", seed=1)
for level in pruner.levels(densities=[0.5]):
    optimizer = pruner.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in range(3):
        with pruner.step():
            torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    key = pruner.log(name="mine")

# A mask: loaded by key, saved, loaded from the file, applied and kept.
load_signed_mask(key).save("mine.safetensors")
mask = load_signed_mask("mine.safetensors")
fresh = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
mask.apply_(fresh)
optimizer = torch.optim.SGD(fresh.parameters(), lr=0.1)
mask.keep(optimizer)
fresh(images).sum().backward()
optimizer.step()
assert int((fresh[0].weight == 0).sum()) == 16, fresh[0].weight
import harness.masks
assert isinstance(mask, harness.masks.SignedMask) and isinstance(mask, signed_tickets.SignedMask)
print(key)
"""
IMAGES = """
import pathlib, numpy, PIL.Image
draw = numpy.random.default_rng(1)
for name in ("round", "square", "flat"):
    folder = pathlib.Path("images", name)
    folder.mkdir(parents=True)
    for number in range(30):
        pixels = draw.integers(0, 256, (40, 50, 3), dtype=numpy.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
"""


@dataclass(frozen=True)
class WheelCheck:
    """Options of the check."""

    keep: bool = False
    """Leave the temporary directory, with the wheel, the environment and the user's files."""


class CheckError(ValueError):
    """The wheel does not do what it should. The message has the command and the end of its output."""


@dataclass
class User:
    """A user with an environment and an empty directory, and with nothing of the clone."""

    bin: Path
    wheel: Path
    where: Path
    environment: dict[str, str]
    installed: list[str] = field(default_factory=list)
    """Extras that messages named."""

    def run(self, *words: str, ok: bool = True) -> str:
        """Run a program of the environment and return its output.

        Raises:
            CheckError: It fails, or with ok=False succeeds.
        """
        started = time.monotonic()
        command = [str(self.bin / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=self.where, env=self.environment, capture_output=True, text=True)
        output = done.stdout + done.stderr
        shown = f"{words[0]} -c …" if "-c" in words[:2] else shlex.join(words)
        say(f"{time.monotonic() - started:5.1f} s  {shown}")
        if (done.returncode == 0) != ok:
            raise CheckError(f"exit code {done.returncode} of: {shown}\n{output[-4000:]}")
        return output

    def pip(self, *words: str) -> None:
        """Install packages in the versions of constraints.txt."""
        common = ["python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        self.run(*common, "--constraint", str(ROOT / "constraints.txt"), *words)

    def tickets(self, line: str) -> str:
        """Run the console script. Install the extras that its messages name, and run it again, until it succeeds."""
        for _ in range(MOST_EXTRAS):
            try:
                output = self.run("tickets", *shlex.split(line))
            except CheckError as error:
                found = REFUSED.search(str(error))
                if found is None:
                    raise
                self.install(found[1])
            else:
                return output
        raise CheckError(f"tickets {line} still asks for extras after {', '.join(self.installed)}")

    def install(self, requirement: str) -> None:
        """Install an extra of the wheel that a message names, such as signed-tickets[data]."""
        if requirement in self.installed:
            raise CheckError(f"{requirement} is installed, and still a message asks for it")
        self.installed.append(requirement)
        self.pip(requirement.replace("signed-tickets", str(self.wheel)))


def main(options: WheelCheck) -> None:
    """Build, install and use the wheel."""
    started, directory = time.monotonic(), Path(tempfile.mkdtemp(prefix="wheel-check-"))
    try:
        wheel = build(directory)
        user = install(wheel, directory)
        use_alone(user)
        follow_messages(user)
    finally:
        if options.keep:
            say(f"kept {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    minutes = (time.monotonic() - started) / 60
    say(f"the wheel works, alone and with {', '.join(user.installed)} ({minutes:.1f} minutes)")


def say(line: str) -> None:
    """Print a line at once."""
    print(f"wheel: {line}", flush=True)


def build(directory: Path) -> Path:
    """Build the wheel from a copy, so that leftovers of an older build do not enter it."""
    source, out = directory / "source", directory / "wheel"
    source.mkdir()
    for name in INSIDE:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*words, "--wheel-dir", str(out), str(source)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise CheckError(f"the wheel cannot be built:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    (wheel,) = out.glob("*.whl")
    check_contents(wheel)
    return wheel


def check_contents(wheel: Path) -> None:
    """Check that the wheel has every file of its packages, and nothing else of the clone.

    Raises:
        CheckError: A file is missing, or there are tests or tools.
    """
    names = zipfile.ZipFile(wheel).namelist()
    wanted = {
        str(path.relative_to(ROOT))
        for package in ("harness", "recipes", "signed_tickets")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    if missing := sorted(wanted - set(names)):
        raise CheckError(f"{wheel.name} lacks {len(missing)} files: {', '.join(missing[:5])}; see package-data")
    if foreign := [name for name in names if name.split("/")[0] in ("tools", "tests", "docs")]:
        raise CheckError(f"{wheel.name} has {', '.join(foreign[:5])}")
    say(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")


def install(wheel: Path, directory: Path) -> User:
    """Install the wheel alone in an empty environment."""
    venv, where = directory / "venv", directory / "empty"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    where.mkdir()
    # Nothing of this process's environment reaches the user, except how pip finds packages, and the number of threads.
    kept = {
        name: value for name, value in os.environ.items() if re.match(r"PIP_|SSL_|REQUESTS_|https?_proxy", name, re.I)
    }
    environment = kept | {"PATH": f"{venv / 'bin'}:/usr/bin:/bin", "HOME": str(directory), "OMP_NUM_THREADS": "1"}
    environment |= {"LANG": "C.UTF-8", "MPLBACKEND": "agg", "MLFLOW_DISABLE_TELEMETRY": "true", "COLUMNS": "120"}
    user = User(venv / "bin", wheel, where, environment)
    user.pip(str(wheel))
    return user


def use_alone(user: User) -> None:
    """Use everything that needs no extra: masks, SignPruner, the console script, and an exported run."""
    # Phase: only the core is there.
    listed = user.run("python", "-m", "pip", "list", "--format", "freeze")
    if extra := re.findall(r"^(?:mlflow|accelerate|datasets|ffcv|matplotlib|scipy|timm|torchvision)==.*", listed, re.M):
        raise CheckError(f"a plain installation brings {', '.join(extra)}")

    # Phase: help, the list of recipes, and a copied recipe.
    commands = re.findall(r"^  (\w+)  ", user.run("tickets", "--help"), re.M)
    for name in commands:
        require(f"usage: tickets {name}", user.run("tickets", name, "--help"))
    require("aws_digits", user.run("tickets", "recipes"))
    require("now run: tickets search aws_digits.py", user.run("tickets", "cp", "aws_digits"))
    user.run("tickets", "cp", "aws_digits", ok=False)
    require("Find a winning sign", user.run("python", "aws_digits.py", "--help"))

    # Phase: a mask, one's own loop, and the run that it logs.
    key = user.run("python", "-c", IN_MEMORY).split()[-1]
    require("mine", user.run("tickets", "lineage", "list", "--offline"))
    user.run("tickets", "lineage", "verify", "--all", "--offline")
    user.run("tickets", "export", key, "--to", "dir", "--out", "shared", "--offline")
    load = "import signed_tickets; print(signed_tickets.load_signed_mask('shared').density)"
    require("0.5", user.run("python", "-c", load))


def follow_messages(user: User) -> None:
    """Go from a folder of images to a verified ticket of a timm network, by the commands that are printed."""
    # Phase: prepare a folder. The images need Pillow, which the message brings.
    (user.where / "images/round").mkdir(parents=True)
    (user.where / "images/square").mkdir()
    for folder in ("round", "square"):
        for number in range(12):
            (user.where / f"images/{folder}/{number}.png").write_text(f"{folder} {number}")
    prepare = "prepare --name flowers --source images --size 32 --channels 3"
    error = user.run("tickets", *prepare.split(), ok=False)
    found = REFUSED.search(error)
    if found is None:
        raise CheckError(f"the message about Pillow names no extra: {error}")
    user.install(found[1])
    shutil.rmtree(user.where / "images")
    user.run("python", "-c", IMAGES)
    search = printed(user.tickets(prepare), "now run: tickets (.*)")

    # Phase: search with a timm network, and train the ticket, as the messages say. Runs stay local without MLflow.
    output = user.tickets(f"{search} --model.name timm:resnet18 {TINY}")
    require("the memory loader reads flowers", output)
    found = NEEDED.search(output)
    if found is None:
        raise CheckError(f"no message names the extra of the tracking store: {output}")
    train = printed(output, "tickets (train .*)")
    output = user.tickets(train)
    second, compare = printed(output, "tickets (train .* --sgd-seed 2)"), printed(output, "tickets (compare .*)")
    run = printed(user.tickets(second), r"run ([0-9a-f]+)$")
    require("barrier", user.tickets(compare.replace("RUN_OF_THE_SECOND", run)))

    # Phase: the lineage, in MLflow too, and the network.
    user.install(found[1])
    require("→ run", user.tickets("lineage sync"))
    require("no problem found", user.tickets("lineage verify --all"))
    load = f"import signed_tickets; print(type(signed_tickets.load_network({run!r})).__name__)"
    require("ResNet", user.run("python", "-c", load))

    # Phase: the wheel computes what the paper says. The message brings the plots.
    require("equal: both compute the same numbers", user.tickets("selfcheck --method aws --epochs 1"))

    # Phase: a search with the copied recipe, in one process and in two.
    user.tickets("prepare digits")
    small = f"--model.name resnet8 --model.width 2 {TINY} --global-batch-size 256 --offline"
    require("tickets train", user.tickets(f"search aws_digits.py {small}"))
    user.install("signed-tickets[accelerate]")
    user.run("tickets", "cp", "cpu_2_processes.yaml")
    words = f"launch --config_file cpu_2_processes.yaml -m signed_tickets search aws_digits {small} --init-seed 3"
    output = user.run("accelerate", *words.split())
    require("accelerate launch --config_file cpu_2_processes.yaml -m signed_tickets train --ticket", output)


def require(text: str, output: str) -> None:
    """Raise CheckError unless the output has the text."""
    if text not in output:
        raise CheckError(f"{text!r} is missing in:\n{output[-4000:]}")


def printed(output: str, pattern: str) -> str:
    """Return the first group of a pattern in one line of the output. Raise CheckError if there is none."""
    found = re.search(pattern, output, re.M)
    if found is None:
        raise CheckError(f"nothing like {pattern!r} in:\n{output[-4000:]}")
    return found[1].strip()


if __name__ == "__main__":
    with clear_errors():
        main(parse(WheelCheck, __doc__))
