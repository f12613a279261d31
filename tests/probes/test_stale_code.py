import torch

import moetrace
from tests.tiny import ScriptedModel


class TestAttachAfterCompile:
    def test_counts_are_exact(self):
        """A model that already ran compiled is compiled once more, with its hooks."""
        torch._dynamo.reset()
        model = ScriptedModel([[0, 1], [0, 2]], num_experts=4)
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        hidden = torch.ones(2, 4)
        compiled(hidden)
        with moetrace.attach(model, every=1) as tracer:
            tracer.on_step_begin()
            compiled(hidden)
            tracer.on_step_end()
            snapshot = tracer.flush()
        assert snapshot["blocks.0"].tokens_per_expert.tolist() == [2, 1, 1, 0]

    def test_in_place_and_per_block(self):
        """The same holds for ``module.compile()`` on the model and on each block."""
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
