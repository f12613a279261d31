import logging

import pytest
import torch
from layerwise.collapse import Prospect
from layerwise.errors import RecipeError
from layerwise.objective import Objective, next_token_loss, precision_loss
from layerwise.pooling import Pool
from layerwise.preparation import objective_of
from layerwise.tiny_model import tiny_llama

from tests.recipes.precision_router import made

SEED = Objective(lowest=3, highest=8)


class TestPrecisionLoss:
    @pytest.mark.parametrize(("average", "loss"), [(3.0, 0.0), (5.5, 5.0), (8.0, 10.0)])
    def test_it_goes_from_0_to_10(self, average, loss):
        """S4-07: 0 at the fewest bits, 10 at the most, 5 in the middle of 3 to 8."""
        assert precision_loss(average, 3, 8) == loss

    def test_one_precision_costs_nothing(self):
        """S4-07: where there is nothing to choose, nothing is divided by 0."""
        assert precision_loss(4.0, 4, 4) == 0


class TestTotal:
    def test_it_is_the_weighted_sum(self):
        """S4-06: 0.7 * 2.0 + 0.3 * 10 * (5.5 - 3) / 5 = 2.9."""
        assert SEED.total(2.0, 5.5) == pytest.approx(2.9)

    def test_its_gradient_reaches_the_bits(self):
        """S4-06: one bit more on average costs 0.3 * 10 / 5 = 0.6."""
        average = torch.tensor(4.0, requires_grad=True)
        SEED.total(torch.tensor(2.0), average).backward()
        assert average.grad.item() == pytest.approx(0.6)

    def test_a_target_costs_its_squared_distance(self):
        """S4-06: with --objective target it is CE + alpha * (average - target) ** 2."""
        objective = Objective(kind="target", lowest=3, highest=8, target=4.0, alpha=0.5)
        assert objective.total(2.0, 6.0) == 2.0 + 0.5 * 4

    def test_weights_that_do_not_sum_to_1_are_a_warning(self, model_folder, text, tmp_path, caplog):
        """S4-03: one warning, and the weights are taken as they are."""
        words = ("--weight_ce", "0.7", "--weight_precision", "0.5")
        objective = objective_of(made.options(model_folder, tmp_path, text, *words), [3, 8])
        assert (objective.weight_ce, objective.weight_precision) == (0.7, 0.5)
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "do not sum to 1" in warning.getMessage()

    def test_a_target_out_of_reach_is_refused(self, model_folder, text, tmp_path):
        """S4-17: a target has to lie between the precisions, and the option is named."""
        options = made.options(
            model_folder, tmp_path, text, "--objective", "target", "--target_precision", "9"
        )
        with pytest.raises(
            RecipeError, match="--target_precision 9; it has to lie between 3 and 8"
        ):
            objective_of(options, [3, 8])


class TestNextTokenLoss:
    def test_it_is_the_loss_of_transformers(self):
        """S4-06: over a whole sequence it is what transformers gives for the same labels."""
        model, ids = tiny_llama(width=16, layers=1), made.tokens(2, 12)
        mask = torch.ones_like(ids)
        mask[0, 9:] = 0
        labels = ids.masked_fill(mask == 0, -100)
        with torch.no_grad():
            output = model(input_ids=ids, attention_mask=mask, labels=labels)
        loss = next_token_loss(output.logits, ids, Pool.parse("mean").scored(mask))
        torch.testing.assert_close(loss, output.loss)

    def test_with_a_prefix_only_what_follows_it_counts(self):
        """S4-06: with prefix:4 the tokens from the fifth on are scored, and only they."""
        ids, logits = made.tokens(1, 8), torch.randn(1, 8, 256)
        scored = Pool.parse("prefix:4").scored(torch.ones_like(ids))
        by_hand = torch.stack(
            [-logits[0, at - 1].log_softmax(-1)[ids[0, at]] for at in (4, 5, 6, 7)]
        )
        torch.testing.assert_close(next_token_loss(logits, ids, scored), by_hand.mean())

    def test_a_copy_of_the_input_is_no_good_prediction(self):
        """S4-06: logits are held against the next token: a model that repeats its input loses."""
        ids = torch.tensor([[1, 2, 3, 4]])
        copy = torch.nn.functional.one_hot(ids, 256).float() * 50
        scored = Pool.parse("mean").scored(torch.ones_like(ids))
        assert next_token_loss(copy, ids, scored) > 40
        assert next_token_loss(copy.roll(-1, 1), ids, scored) < 1e-6


class TestProspect:
    def test_the_price_of_a_bit_is_0_857_nats_by_default(self):
        """S4-06: 0.3 * 10 / (0.7 * 5) = 0.857 nats per bit of 3 to 8."""
        assert SEED.price_per_bit == pytest.approx(6 / 7)

    def test_bits_that_save_less_than_they_cost_will_collapse(self):
        """S4-06: all bits together save 0.5 nats where one costs 0.857: collapse is predicted."""
        prospect = Prospect(SEED, {3: 2.0, 4: 1.6, 8: 1.5})
        assert prospect.collapses
        assert "will collapse to 3 bits in every layer: one bit costs 0.857" in prospect.warning()

    def test_a_bit_that_saves_more_than_it_costs_will_not(self):
        """S4-06: 1 nat for the fourth bit is above 0.857."""
        prospect = Prospect(SEED, {3: 3.0, 4: 2.0, 8: 1.9})
        assert (prospect.best_uniform, prospect.collapses) == (4, False)

    def test_a_target_does_not_collapse(self):
        """S4-06: the other objective has no price per bit."""
        objective = Objective(kind="target", lowest=3, highest=8, target=3.0)
        assert not Prospect(objective, {3: 2.0, 8: 1.5}).collapses
