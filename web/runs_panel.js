// The sidebar tab with all training runs, the view of one of them, and notices.
import { app } from "../../scripts/app.js";
import { runList } from "./panel/list.js";
import { allowNotifications, markRead, NOTIFY, watchForNews } from "./panel/notices.js";
import { runView } from "./panel/run_view.js";
import { VIEW } from "./panel/selection.js";
import { t } from "./panel/texts.js";

const TAB = "identity-grpo";

// What the editor calls to show a tab and to take it away again.
function custom(fill) {
  let end;
  return {
    type: "custom",
    render(place) {
      end?.();
      end = fill(place);
    },
    destroy() {
      end?.();
      end = undefined;
    },
  };
}

const isOpen = () => app.extensionManager.sidebarTab?.activeSidebarTabId === TAB;

function setBadge(count) {
  const tab = app.extensionManager.sidebarTab?.sidebarTabs?.find((one) => one.id === TAB);
  if (tab) tab.iconBadge = count ? String(count) : undefined;
}

app.registerExtension({
  name: "identitygrpo.panel",
  bottomPanelTabs: [{ id: VIEW, title: "Training run", ...custom(runView) }],
  settings: [{
    id: NOTIFY,
    category: ["Identity-GRPO", "Training", "Notifications"],
    name: "Notify by the browser when a run has finished or failed while the page is hidden",
    type: "boolean",
    defaultValue: false,
    onChange: allowNotifications,
  }],
  setup() {
    app.extensionManager.registerSidebarTab({
      id: TAB,
      icon: "pi pi-chart-line",
      title: "Identity-GRPO",
      tooltip: t("Identity-GRPO: training runs"),
      ...custom((place) => {
        markRead();
        return runList(place);
      }),
    });
    watchForNews(setBadge, isOpen);
  },
});
