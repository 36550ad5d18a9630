"""SCT that takes its time: runs that a scheduler can time out, on a machine whose cores are needed for others."""

import dataclasses
import os
import time

from methods.sct.method import SCT


class Slow(SCT):
    """SCT with a pause after each step, of $SLOW_STEP_SECONDS if there is that variable; it computes what SCT does."""

    name = "slow"
    title = "Slow"

    def attach(self, backbone, context):
        pause = float(os.environ.get("SLOW_STEP_SECONDS", "0"))
        return dataclasses.replace(super().attach(backbone, context), after_step=lambda step: time.sleep(pause))
