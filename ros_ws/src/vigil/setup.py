"""The `vigil` package as colcon (ament_python) builds it in a sourced ROS 2 workspace.

Without ROS the root's pyproject.toml installs the same package with pip.
"""

from setuptools import find_packages, setup

ROOMS_WITH_NODES = ("camera", "policy", "monitor", "arm", "teleop", "record", "sim")
# Report page, robot model, licences: everything beside the code, in whatever folder below the package it lies.
DATA = [
    f"**/{name}"
    for name in ("*.html", "*.svg", "*.png", "*.xml", "*.stl", "*.obj", "*.json", "*.yaml", "LICENSE*")
]


setup(
    name="vigil",
    version="0.1.0",
    packages=find_packages(include=["vigil", "vigil.*"]),
    package_data={"": DATA},
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/vigil"]),
        ("share/vigil", ["package.xml"]),
    ],
    install_requires=["setuptools"],
    zip_safe=False,
    description="Puts a learned visuomotor policy on a real robot, watches it, holds it, and hands it over.",
    maintainer="Vigil maintainers",
    maintainer_email="maintainers@vigil-robotics.org",
    license="Apache-2.0",
    entry_points={
        "console_scripts": [
            "vigil = vigil.cli:main",
            *(f"{room}_node = vigil.{room}.node:main" for room in ROOMS_WITH_NODES),
        ]
    },
)
