// A first pass over a corpus: how much there is, and a random sample of lines for the tokenizer to learn from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/corpus.h"

namespace switchyard {

struct Survey {
  std::int64_t documents = 0, heldout_documents = 0;
  std::int64_t bytes = 0;          // of the documents as they lie in the files
  double lowest_key = 1;           // of Holdout, over all documents
  std::vector<std::string> lines;  // in the order of the corpus, each with its newlines
};

// Samples `sample_lines` lines (0: none) without replacement, each line of the training documents equally likely;
// decided by (holdout.seed, number of the line), so the same on every machine.
Survey survey_corpus(const Corpus& corpus, const Holdout& holdout, std::int64_t sample_lines);

}  // namespace switchyard
