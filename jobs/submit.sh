#!/usr/bin/env bash
# Submit a capfilt command to a Ray cluster as a job, and follow it.
#
#     jobs/submit.sh run /shared/recipe.yaml            on the cluster of $RAY_API_SERVER_ADDRESS
#     jobs/submit.sh demo --folder /shared/demo         (default: http://127.0.0.1:8265)
#
# From a clone, the packages of this clone are sent along; a cluster on which capfilt is installed
# needs nothing sent. Submitting again resumes: all state is in the run's folder.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
if [ "$#" -eq 0 ]; then
  sed -n '2,8p' "$0" | sed 's/^# \{0,1\}//'
  exit 2
fi
modules="[\"$here/capfilt\", \"$here/model/capfilt_blip\"]"
exec ray job submit \
  --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \
  --runtime-env-json "{\"py_modules\": $modules}" \
  -- python -m capfilt "$@"
