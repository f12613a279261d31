import torch

import moetrace
from tests.tiny import ScriptedModel


class TestAttachAfterCompile:
    def test_each_block_counts_its_own(self):
        """Blocks that share compiled code are told apart after an attach that came late."""
        for per_block in (False, True):
            torch._dynamo.reset()
            model = ScriptedModel([[0, 1]], [[2, 3]], num_experts=4)
            for module in model.blocks if per_block else [model]:
                module.compile(backend="aot_eager", fullgraph=True)
            hidden = torch.ones(1, 4)
            model(hidden)
            with moetrace.attach(model, every=1) as tracer:
                tracer.on_step_begin()
                model(hidden)
                tracer.on_step_end()
                snapshot = tracer.flush()
            counts = [stats.tokens_per_expert.tolist() for stats in snapshot]
            assert counts == [[1, 1, 0, 0], [0, 0, 1, 1]], per_block
