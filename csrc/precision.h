// PyTorch's precision settings. They are not in the stable ABI.
#pragma once

namespace fastconv {

// Returns whether PyTorch lets convolutions of float32 use TF32 on a GPU: torch.backends.cudnn.allow_tf32, or since
// torch 2.9 torch.backends.cudnn.conv.fp32_precision. Asks Python, so it takes the GIL.
bool allows_tf32();

}  // namespace fastconv
