//! Words through which warps synchronise: what a release left there for an acquire to find.

use super::request::{Order, Scope};
use super::warp::Warp;
use super::world::World;

/// What one word publishes at present.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// For everybody.
    gpu: Option<Published>,
    /// Only for the CTA it came from.
    cta: Option<Published>,
}

#[derive(Debug)]
struct Published {
    /// The CTA it came from; none when several took part.
    origin: Option<u32>,
    world: World,
}

impl Signal {
    /// `lanes` of a warp of `cta` read the word with that order and scope.
    pub(super) fn read(&self, warp: &mut Warp, cta: u32, lanes: u32, order: Order, scope: Scope) {
        for (published, reach) in [(&self.gpu, Scope::Gpu), (&self.cta, Scope::Cta)] {
            let Some(published) = published else { continue };
            let own = published.origin == Some(cta);
            if !own && (scope == Scope::Cta || reach == Scope::Cta) {
                continue;
            }
            if let Some(origin) = published.origin
                && !own
                && warp.knows(lanes).world.has(origin, &published.world)
            {
                continue;
            }
            if order.acquires() {
                warp.learn(lanes, &published.world);
            } else {
                warp.defer(lanes, &published.world, if own { Scope::Cta } else { Scope::Gpu });
            }
        }
    }

    /// `lanes` of a warp of `cta` write the word. A read-modify-write continues what earlier ones published; a store
    /// starts anew, and publishes nothing when it neither releases nor follows a fence.
    pub(super) fn write(&mut self, warp: &mut Warp, cta: u32, lanes: u32, order: Order, scope: Scope, modify: bool) {
        if !modify {
            *self = Self::default();
        }
        let mut fresh = [None, None];
        if order.releases() {
            fresh[scope as usize] = Some(warp.publish(lanes));
        } else {
            fresh[Scope::Cta as usize] = warp.fenced(lanes, Scope::Cta).cloned();
            if scope == Scope::Gpu {
                fresh[Scope::Gpu as usize] = warp.fenced(lanes, Scope::Gpu).cloned();
            }
        }
        let [for_cta, for_gpu] = fresh;
        add(&mut self.cta, cta, for_cta);
        add(&mut self.gpu, cta, for_gpu);
    }

    /// Nothing is published.
    pub(super) fn is_empty(&self) -> bool {
        self.gpu.is_none() && self.cta.is_none()
    }
}

fn add(place: &mut Option<Published>, cta: u32, world: Option<World>) {
    let Some(world) = world else { return };
    match place {
        Some(published) => {
            published.world.join(&world);
            if published.origin != Some(cta) {
                published.origin = None;
            }
        }
        none => *none = Some(Published { origin: Some(cta), world }),
    }
}
