#!/bin/bash
# Sources ROS and the workspace, then runs the command.
set -e
source /opt/ros/jazzy/setup.bash
source /vigil/ros_ws/install/local_setup.bash
# `vigil` lies where ros2 run looks for it.
export PATH="/vigil/ros_ws/install/lib/vigil:$PATH"
# CUDA libraries that came as wheels (GPU image) are not where the loader looks.
for folder in /usr/local/lib/python3*/dist-packages/nvidia/*/lib; do
    if [ -d "$folder" ]; then
        LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    fi
done
export LD_LIBRARY_PATH
exec "$@"
