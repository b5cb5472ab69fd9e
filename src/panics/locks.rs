//! Locks of state that clients share. A panic while one is held ends the process, also in a scope
//! that catches panics: the locks do not poison, so other threads would go on with state that is
//! half changed.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{IS_SHARED_STATE_BROKEN, SHARED_STATE_DEPTH};

/// The section in which this thread changes shared state, whatever protects it: a lock of any
/// crate, or a call into another part of the program.
pub struct SharedStateSection {
    // The section belongs to the thread that entered it.
    _not_send: PhantomData<*const ()>,
}

impl SharedStateSection {
    #[must_use]
    pub fn enter() -> SharedStateSection {
        SHARED_STATE_DEPTH.set(SHARED_STATE_DEPTH.get() + 1);
        SharedStateSection { _not_send: PhantomData }
    }
}

impl Drop for SharedStateSection {
    fn drop(&mut self) {
        SHARED_STATE_DEPTH.set(SHARED_STATE_DEPTH.get() - 1);
        if std::thread::panicking() {
            IS_SHARED_STATE_BROKEN.set(true);
        }
    }
}

/// A guard of a shared lock, with the section that it opens.
pub struct SharedLockGuard<G> {
    guard: G,
    _section: SharedStateSection,
}

impl<G: Deref> Deref for SharedLockGuard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for SharedLockGuard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

/// The guard of a [`SharedMutex`].
pub type SharedMutexGuard<'a, T> = SharedLockGuard<MutexGuard<'a, T>>;

/// The guard of a reader of a [`SharedRwLock`].
pub type SharedReadGuard<'a, T> = SharedLockGuard<RwLockReadGuard<'a, T>>;

/// The guard of a writer of a [`SharedRwLock`].
pub type SharedWriteGuard<'a, T> = SharedLockGuard<RwLockWriteGuard<'a, T>>;

/// A mutex of shared state.
#[derive(Debug, Default)]
pub struct SharedMutex<T>(Mutex<T>);

impl<T> SharedMutex<T> {
    pub const fn new(value: T) -> SharedMutex<T> {
        SharedMutex(Mutex::new(value))
    }

    pub fn lock(&self) -> SharedMutexGuard<'_, T> {
        let section = SharedStateSection::enter();
        SharedLockGuard { guard: self.0.lock(), _section: section }
    }
}

/// A read-write lock of shared state. Readers enter a section too: a reader may fail because the
/// state is wrong already.
#[derive(Debug, Default)]
pub struct SharedRwLock<T>(RwLock<T>);

impl<T> SharedRwLock<T> {
    pub const fn new(value: T) -> SharedRwLock<T> {
        SharedRwLock(RwLock::new(value))
    }

    pub fn read(&self) -> SharedReadGuard<'_, T> {
        let section = SharedStateSection::enter();
        SharedLockGuard { guard: self.0.read(), _section: section }
    }

    pub fn write(&self) -> SharedWriteGuard<'_, T> {
        let section = SharedStateSection::enter();
        SharedLockGuard { guard: self.0.write(), _section: section }
    }
}
