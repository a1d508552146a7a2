"""The ROS 2 package; `colcon build` calls it. ovsdino itself is installed with pip (README.md)."""

from setuptools import setup

NAME = "ovsdino_ros"

setup(
    name=NAME,
    version="0.1.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (f"share/{NAME}", ["package.xml", "README.md"]),
        (f"share/{NAME}/launch", ["launch/segmentation.launch.py"]),
        (f"share/{NAME}/config", ["config/segmentation.yaml", "config/nav2_layer.yaml"]),
    ],
    install_requires=["setuptools", "numpy", "pillow", "safetensors"],
    zip_safe=True,
    description="Open-vocabulary segmentation of camera images: masks, confidence and class names for Nav2",
    license="Apache-2.0",
    entry_points={"console_scripts": [f"segmentation = {NAME}.node:main", f"bag = {NAME}.bag:main"]},
)
