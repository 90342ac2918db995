"""Train a ticket: any logged signed mask on a fresh initialisation, with the full schedule and no interpolation.

For        the final trainings of the paper (method, section 4); network, data and schedule follow from the ticket's run
Time       the final epochs of the recipe that found the ticket
Launch     accelerate launch recipes/train_ticket.py --ticket RUN_ID --kind signed_mask --init-seed 2 --sgd-seed 1
           accelerate launch recipes/train_ticket.py --ticket RUN_ID --initialisation kaiming_normal --signs pruned
           accelerate launch recipes/train_ticket.py --ticket RUN_ID --data cifar10
"""

from harness.cli.commands import use_ticket

if __name__ == "__main__":
    use_ticket(__doc__)
