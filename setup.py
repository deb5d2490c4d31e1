"""Where the folders of a checkout go in an installation; all else is in pyproject.toml.

The commands and their data pipelines are installed below onelive_jax, so that no package of a general name
("experiments") lands in site-packages. The console script `onelive` finds them there.
"""

from setuptools import find_packages, setup

COMMANDS = "onelive_jax.commands"
found = find_packages(include=["data_pipelines*", "experiments*"])
folders = {f"{COMMANDS}.{name}": name.replace(".", "/") for name in found}
setup(packages=[*find_packages(include=["onelive_jax*"]), *folders], package_dir=folders,
      package_data={"onelive_jax": ["py.typed"], **{package: ["*.html", "launch/*"] for package in folders}})
