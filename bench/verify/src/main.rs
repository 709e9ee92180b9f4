//! How many bytes are allocated to verify a body of 25 MB: none of them for another copy of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use hookbridge_bench_verify::case;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn main() {
    for name in ["github", "stripe", "slack", "standard-webhooks", "shopify"] {
        let case = case(name, 25_000_000).expect("a preset with a shared key");
        let before = ALLOCATED.load(Ordering::Relaxed);
        let genuine = case.verify();
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before;
        println!("{name}: genuine {genuine}, body {} bytes, allocated {allocated} bytes", case.sample.body.len());
    }
}
