"""The Debian packages have what a PC of a cluster needs, and the program in them starts."""

import pathlib
import shutil
import subprocess
import tempfile
import unittest

from support import BINARY, ENVIRONMENT, SOURCE

BUILD = pathlib.Path(BINARY).parent.parent


class Package(unittest.TestCase):
    @unittest.skipUnless(shutil.which("cpack") and shutil.which("dpkg-deb") and shutil.which("dpkg-shlibdeps"), "no tools for Debian packages here")
    def test_it_is_complete_and_starts(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            made = subprocess.run(["cpack", "--config", BUILD / "CPackConfig.cmake", "-B", folder], capture_output=True, text=True, check=False)
            self.assertEqual(made.returncode, 0, made.stdout + made.stderr)
            package, = folder.glob("stagecoach_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
            root = folder / "root/usr"
            for file in ("lib/stagecoach/stagecoach-mpi.so", "lib/systemd/system/stagecoach-agent.service", "share/doc/stagecoach/launcher.md",
                         "share/doc/stagecoach/examples/jobs/gptj-4pc.toml", "share/doc/stagecoach/copyright"):
                self.assertTrue((root / file).exists(), file)
            version = subprocess.run([root / "bin/stagecoach", "--version"], capture_output=True, text=True, env=ENVIRONMENT, check=True)
            self.assertIn("stagecoach ", version.stdout)
            fields = subprocess.run(["dpkg-deb", "-f", package], capture_output=True, text=True, check=True).stdout
            self.assertIn("libssl3", fields)
            self.assertFalse((root / "lib/stagecoach/stagecoach-cuda.so").exists())
            if not (BUILD / "lib/stagecoach/stagecoach-cuda.so").exists():
                return  # no CUDA Toolkit here
            package, = folder.glob("stagecoach-cuda_*.deb")
            subprocess.run(["dpkg-deb", "-x", package, folder / "root"], check=True)
            self.assertTrue((root / "lib/stagecoach/stagecoach-cuda.so").exists())
            fields = subprocess.run(["dpkg-deb", "-f", package], capture_output=True, text=True, check=True).stdout
            self.assertRegex(fields, r"Depends: stagecoach \(= \d")
            # It is found beside the binary and opened, whether a card is here or not.
            store = folder / "store"
            subprocess.run([BINARY, "create", SOURCE / "tests/data/golden/gpt2-f32/config.json", store, "--quiet"], capture_output=True, check=True)
            tried = subprocess.run([root / "bin/stagecoach", "time", "--device", "cuda", "--store", store, "--tokens", "1"],
                                   capture_output=True, text=True, env=ENVIRONMENT, check=False)
            self.assertIn(tried.returncode, (0, 4))
            self.assertNotIn("cannot be opened", tried.stderr)

    @unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd here")
    def test_the_unit_is_one(self):
        with tempfile.TemporaryDirectory() as folder:
            # The program is not installed where the unit looks for it.
            unit = pathlib.Path(folder) / "stagecoach-agent.service"
            unit.write_text((SOURCE / "launcher/stagecoach-agent.service").read_text().replace("/usr/bin/stagecoach", "/bin/true"))
            checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
            self.assertNotIn("stagecoach-agent", checked.stderr)


if __name__ == "__main__":
    unittest.main()
