"""Train a ticket: any logged signed mask on a fresh initialisation, with the full schedule and no interpolation.

For        the final trainings of the paper (method, section 4); network, data and schedule follow from the ticket's run
Time       the final epochs of the recipe that found the ticket
Launch     accelerate launch recipes/train_ticket.py --ticket RUN_ID --kind signed_mask --init-seed 2 --sgd-seed 1
           accelerate launch recipes/train_ticket.py --ticket RUN_ID --initialisation kaiming_normal --signs pruned
           accelerate launch recipes/train_ticket.py --ticket RUN_ID --data cifar10
"""

from harness.cli.errors import clear_errors
from harness.cli.launch import train_ticket
from harness.cli.options import parse
from harness.config import TicketConfig

if __name__ == "__main__":
    with clear_errors():
        train_ticket(parse(TicketConfig, __doc__))
