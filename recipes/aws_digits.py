"""Find a winning sign on scikit-learn's digits: ResNet-20, 9 prunings to density 0.134.

For        a first look, and for tests: real images; the paper has no digits
Expected   dense test error at most 2 %
Time       minutes
Hardware   a laptop's CPU
Data       python tools/prepare_data.py digits --out data
Launch     accelerate launch recipes/aws_digits.py
           accelerate launch recipes/aws_digits.py --method lrr --num-levels 5 --init-seed 7
"""

from harness.cli.commands import run_search
from recipes.presets.small import digits

if __name__ == "__main__":
    run_search(__doc__, digits())
