"""Start the node with the parameters of a file; `image` is the topic of the camera."""

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node


def generate_launch_description() -> LaunchDescription:
    """Return the description."""
    share = get_package_share_directory("ovsdino_ros")
    arguments = {
        "params_file": (f"{share}/config/segmentation.yaml", "parameters of the node"),
        "image": ("/camera/image", "topic of the images; compressed ones come from <topic>/compressed"),
        "namespace": ("", "namespace of the node and its topics"),
    }
    image = LaunchConfiguration("image")
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, (default, text) in arguments.items()
            ),
            Node(
                package="ovsdino_ros",
                executable="segmentation",
                name="segmentation",
                namespace=LaunchConfiguration("namespace"),
                parameters=[LaunchConfiguration("params_file")],
                remappings=[("image", image), ("image/compressed", [image, "/compressed"])],
                output="screen",
            ),
        ]
    )
