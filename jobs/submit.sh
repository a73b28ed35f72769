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
address=${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}
if ! command -v ray >/dev/null; then
  echo "jobs/submit.sh: there is no ray command here; run pip install 'ray[default]'" >&2
  exit 1
fi
# Ray would answer with its traceback. Whatever answers is left to it, as are addresses like auto.
python3 - "$address" <<'PYTHON'
import http.client
import ssl
import sys
import urllib.error
import urllib.request

address = sys.argv[1]
try:
    if address.startswith(("http://", "https://")):
        urllib.request.urlopen(address, timeout=10).close()
except (urllib.error.HTTPError, http.client.HTTPException):
    pass
except OSError as err:
    reason = getattr(err, "reason", err)
    if not isinstance(reason, ssl.SSLError):
        sys.exit(
            f"jobs/submit.sh: no Ray job server answers at {address} ({reason}); set "
            "RAY_API_SERVER_ADDRESS to your cluster's, or start one here: ray start --head"
        )
PYTHON
modules="[\"$here/capfilt\", \"$here/model/capfilt_blip\"]"
exec ray job submit \
  --address "$address" \
  --runtime-env-json "{\"py_modules\": $modules}" \
  -- python -m capfilt "$@"
