"""Find a winning sign on scikit-learn's digits: ResNet-20, 9 prunings to density 0.134.

Figure     none. The paper does not use digits. Use this recipe for a first look and for tests
Networks   ResNet-20 (default). --network selects any other network with these settings
Expected   dense test error of at most 2 %
Time       minutes
Hardware   a laptop's CPU
Data       python tools/prepare_data.py digits --out data
Launch     python recipes/aws_digits.py
           python recipes/aws_digits.py --method lrr --num-levels 5 --init-seed 7
"""

from harness.cli.commands import run_search
from recipes.presets.small import digits

if __name__ == "__main__":
    run_search(__doc__, digits())
