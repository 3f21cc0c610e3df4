"""Installs what an environment lacks of a requirements file, and touches nothing else.

  python launch/install_missing.py requirements.txt [--dry-run]

For images that bring their own jax (Colab, GPU, TPU): packages that are there stay at
their version, even where another would be preferred; a line says so.
"""

import argparse
import subprocess
import sys
import tempfile
from importlib import metadata

try:
  from packaging.requirements import Requirement
except ImportError:
  from pip._vendor.packaging.requirements import Requirement

# A distribution that does the work of another.
STANDS_IN = {"tensorflow-cpu": ("tensorflow", "tensorflow-intel", "tf-nightly")}


def version(name: str) -> str | None:
  """Installed version of a distribution or of one that stands in for it."""
  for candidate in (name, *STANDS_IN.get(name, ())):
    try:
      return metadata.version(candidate)
    except metadata.PackageNotFoundError:
      continue
  return None


def examine(lines: list[str]) -> tuple[list[str], list[str], list[str]]:
  """Requirement lines -> (missing requirements, pins of what is there, remarks)."""
  missing, pins, remarks = [], [], []
  for line in lines:
    line = line.split("#")[0].strip()
    if not line:
      continue
    requirement = Requirement(line)
    found = version(requirement.name)
    if found is None:
      missing.append(line)
      continue
    pins.append(f"{requirement.name}=={found}")
    if not requirement.specifier.contains(found, prereleases=True):
      remarks.append(f"{requirement.name} {found} is here, {line} is what is tested")
  return missing, pins, remarks


def main() -> int:
  parser = argparse.ArgumentParser("python -m launch.install_missing")
  parser.add_argument("requirements", type=argparse.FileType(), help="file of them")
  parser.add_argument("--dry-run", action="store_true", help="says what is missing")
  args = parser.parse_args()
  with args.requirements as f:
    missing, pins, remarks = examine(f.readlines())
  for remark in remarks:
    print(f"note: {remark}")
  if not missing:
    return 0
  print("installing what is missing:", " ".join(missing), flush=True)
  if args.dry_run:
    return 0
  # jaxlib is not in the file, but a new one would break the jax that is here.
  pins += [f"{p}=={v}" for p in ("jaxlib", "protobuf") if (v := version(p))]
  with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
    constraints.write("\n".join(pins) + "\n")
    constraints.flush()
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", constraints.name]
    return subprocess.run([*pip, *missing]).returncode


if __name__ == "__main__":
  sys.exit(main())
