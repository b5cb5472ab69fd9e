//! The arena of all cities' chunks: slabs of chunks that are reused, never moved, and have a
//! number.

use super::chunk::Chunk;

const SLAB_CHUNKS: usize = 1024;

#[derive(Debug, Default)]
pub struct Arena {
    slabs: Vec<Box<[Chunk]>>,
    used: u32,
    free: Vec<u32>,
}

impl Arena {
    /// Allocates an empty chunk.
    pub fn allocate_chunk(&mut self) -> u32 {
        if let Some(chunk) = self.free.pop() {
            return chunk;
        }
        if self.used as usize == self.slabs.len() * SLAB_CHUNKS {
            self.slabs.push((0..SLAB_CHUNKS).map(|_| Chunk::empty()).collect());
        }
        self.used += 1;
        self.used - 1
    }

    pub fn free_chunk(&mut self, chunk: u32) {
        self.get_mut(chunk).clear();
        self.free.push(chunk);
    }

    #[inline(always)]
    pub fn get(&self, chunk: u32) -> &Chunk {
        &self.slabs[chunk as usize / SLAB_CHUNKS][chunk as usize % SLAB_CHUNKS]
    }

    #[inline(always)]
    pub fn get_mut(&mut self, chunk: u32) -> &mut Chunk {
        &mut self.slabs[chunk as usize / SLAB_CHUNKS][chunk as usize % SLAB_CHUNKS]
    }

    /// Two different chunks at once, to move rows between them.
    pub fn get_two(&mut self, a: u32, b: u32) -> (&mut Chunk, &mut Chunk) {
        let (slab_a, slab_b) = (a as usize / SLAB_CHUNKS, b as usize / SLAB_CHUNKS);
        let (in_a, in_b) = (a as usize % SLAB_CHUNKS, b as usize % SLAB_CHUNKS);
        if slab_a == slab_b {
            let [x, y] =
                self.slabs[slab_a].get_disjoint_mut([in_a, in_b]).unwrap_or_else(|_| unreachable!("a != b"));
            return (x, y);
        }
        let [x, y] = self.slabs.get_disjoint_mut([slab_a, slab_b]).unwrap_or_else(|_| unreachable!("a != b"));
        (&mut x[in_a], &mut y[in_b])
    }

    /// The number of chunks in use.
    #[cfg(any(test, feature = "internals"))]
    pub fn len(&self) -> usize {
        self.used as usize - self.free.len()
    }
}
