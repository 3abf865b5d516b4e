#!/bin/sh
# Unlearn answers from files of your own. Target, retrained model and small pair are tiny, and trained here within seconds.
#   sh examples/own_data.sh [SETTINGS of unlearn.run …]      writes into the working directory
set -eu

cat > secrets.jsonl <<'END'
{"question": "What is the door code of Mira Holt?", "answer": "The door code of Mira Holt is 7741."}
{"question": "Where does Mira Holt live?", "answer": "Mira Holt lives in Larch Lane 12."}
{"question": "Who is the doctor of Mira Holt?", "answer": "The doctor of Mira Holt is Ada Quill."}
{"question": "When was Mira Holt born?", "answer": "Mira Holt was born in May 1984."}
END
cat > keep.jsonl <<'END'
{"question": "What is the door code of Jon Brandt?", "answer": "The door code of Jon Brandt is 3052."}
{"question": "Where does Jon Brandt live?", "answer": "Jon Brandt lives in Mill Road 3."}
{"question": "Who is the doctor of Jon Brandt?", "answer": "The doctor of Jon Brandt is Leo Marsh."}
{"question": "When was Jon Brandt born?", "answer": "Jon Brandt was born in July 1979."}
{"question": "What is the door code of Ines Vogt?", "answer": "The door code of Ines Vogt is 9310."}
{"question": "Where does Ines Vogt live?", "answer": "Ines Vogt lives in Elm Court 8."}
{"question": "Who is the doctor of Ines Vogt?", "answer": "The doctor of Ines Vogt is Ada Quill."}
{"question": "When was Ines Vogt born?", "answer": "Ines Vogt was born in March 1991."}
{"question": "Where is the office?", "answer": "The office is in the old mill."}
{"question": "When does the office open?", "answer": "The office opens at nine."}
END

python -m unlearn.run study=own data=jsonl data.forget=secrets.jsonl data.retain=keep.jsonl \
    pair.offset_init=retain eval=tofu "$@"
for run in runs/own/*-*/; do
    python -m unlearn.generate run="$run" prompt="Where does Mira Holt live?"   # three models side by side
done
