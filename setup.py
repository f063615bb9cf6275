"""Packages of the wheel; all else stands in pyproject.toml.

``conf/`` stands beside the package in a checkout, where people edit it, and goes into the wheel as ``skim/conf``.
"""

from setuptools import find_namespace_packages, setup

setup(
    packages=[
        *find_namespace_packages(include=["skim*", "tasks*"]),
        *(f"skim.{group}" for group in find_namespace_packages(include=["conf*"], exclude=["conf.local"])),
    ],
    package_dir={"skim.conf": "conf"},
)
