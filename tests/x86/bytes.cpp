// Lists the product of bytes of a target, X86_TARGET, whose file is included before this one.
#include "check.h"

#define X86_QUOTED(text) #text
#define X86_NAME(target) X86_QUOTED(target)

namespace x86_check {

namespace {

namespace target = gru::cpu::X86_TARGET;

const struct Listed {
  Listed() {
    byte_products().push_back(
        {X86_NAME(X86_TARGET), target::Vec<float>::width, target::kByteOffset, target::kOnTiles<target::ProductBytes>,
         [](const float* a, int64_t lda, int64_t low, int64_t high, const float* w, int64_t words, int64_t first_group,
            int64_t last_group, const Body& body) {
           target::multiply<target::ProductBytes, 3>(a, lda, low, high, w, words, first_group, last_group, body);
         }});
  }
} listed;

}  // namespace

}  // namespace x86_check
