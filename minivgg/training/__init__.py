"""From a folder of images to a trained network: data, optimisers, schedules, the loop, and runs that can be resumed."""
