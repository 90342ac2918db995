"""Train a ticket: any logged signed mask on a fresh initialisation, with the full schedule and no interpolation.

For        the final trainings of the paper (method, section 4); network, data and schedule follow from the ticket's run
Time       the final epochs of the recipe that found the ticket
Launch     accelerate launch recipes/train_ticket.py --ticket RUN_ID --kind signed_mask --init-seed 2 --sgd-seed 1
           accelerate launch recipes/train_ticket.py --ticket RUN_ID --initialisation kaiming_normal --signs pruned
           accelerate launch recipes/train_ticket.py --ticket RUN_ID --data cifar10
"""

from harness.cli.errors import clear_errors
from harness.cli.launch import launch_ticket
from harness.cli.options import parse
from harness.cli.terminal import print_training
from harness.config import TicketConfig
from harness.experiment.final import Trial, final_training


def main() -> None:
    """Make one final training and print its result."""
    with clear_errors():
        settings = parse(TicketConfig, __doc__)
        with launch_ticket(settings) as (experiment, ticket):
            trial = Trial(
                settings.kind,
                settings.init_seed,
                settings.sgd_seed,
                unpruned_signs=settings.unpruned_signs,
                signs=settings.signs,
                initialisation=settings.initialisation,
            )
            print_training(experiment, final_training(experiment, trial, ticket, same_init=settings.same_init))


if __name__ == "__main__":
    main()
