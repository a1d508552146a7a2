"""Segment camera images of ROS 2 by words; only `ovsdino_ros.node` needs a ROS installation."""
