"""The compiled part of Atoll. It is optional: without a compiler the same digests are computed in numpy and torch."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "atoll.checkpoint._digest",
            sources=["atoll/checkpoint/_digest.c"],
            extra_compile_args=["-O3"],
            py_limited_api=True,
            optional=True,
        )
    ]
)
