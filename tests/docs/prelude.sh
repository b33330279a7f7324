# Read before each shell block of the pages. Nothing is installed and no test is started: the arguments are checked.
set -euo pipefail

pip() { command python "$REPOSITORY/tests/docs/checked.py" pip "$@"; }
pytest() { command python "$REPOSITORY/tests/docs/checked.py" pytest "$@"; }
python() {
  if [ "$1" = train.py ]; then
    # Unquoted: several arguments.
    command python "$@" $TRAIN_ARGUMENTS
  else
    command python "$@"
  fi
}
